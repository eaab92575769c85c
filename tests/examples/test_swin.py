"""The Swin-like network: windows that do not wrap around, and a graph that folds as a Swin's does."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import normfold
from examples.swin import WindowAttention, swin_shapes

SIDE, WINDOW = 8, 4


@pytest.mark.parametrize("shift", [0, 2])
def test_a_token_sees_its_shifted_window_and_nothing_across_the_edge(shift: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, SIDE, WINDOW, shift).double()
    x = torch.randn(1, SIDE, SIDE, 8, dtype=torch.float64, requires_grad=True)
    y = attention(x)
    for row, column in ((0, 0), (1, 6), (3, 3), (7, 2)):
        (seen,) = torch.autograd.grad(y[0, row, column].sum(), x, retain_graph=True)
        found = {(int(i), int(j)) for i, j in (seen[0].abs().sum(-1) > 1e-12).nonzero()}
        rows, columns = (
            [i for i in range(SIDE) if (i - shift) // WINDOW == (at - shift) // WINDOW]
            for at in (row, column)
        )
        assert found == {(i, j) for i in rows for j in columns}


@pytest.mark.slow
def test_it_converts() -> None:
    torch.manual_seed(0)
    network = swin_shapes().eval()
    x = torch.randn(5, 3, 32, 32)
    graph = normfold.capture(network, (x[:2],), dynamic={"images": {0: Dim("batch")}})
    torch.testing.assert_close(graph(x), network(x))
    _, report = normfold.run(graph, "canonicalize,fold-affine,center-stream,bake")
    assert report.ok
    norms = [site.state for site in report.sites if site.kind == "layer-norm"]
    assert len(norms) == 14
