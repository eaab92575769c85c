"""An LSTM with projections is captured as one without, at any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.ir import capture
from normfold.ir.capture import dynamic_axes


class Projected(nn.Module):
    def __init__(self, layers: int, both: bool, bias: bool, batch_first: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(
            6, 5, layers, bias=bias, batch_first=batch_first, bidirectional=both, proj_size=3
        )

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.rnn(x, state)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize(
    ("layers", "both", "bias", "batch_first"),
    [(1, False, True, True), (3, False, False, False), (2, True, True, True)],
)
def test_projections_become_weights(
    layers: int, both: bool, bias: bool, batch_first: bool, given: bool
) -> None:
    net = Projected(layers, both, bias, batch_first).double().eval()

    def call(batch: int, length: int) -> tuple[Any, ...]:
        shape = (batch, length) if batch_first else (length, batch)
        x = torch.randn(*shape, 6, dtype=torch.float64)
        rows = layers * (1 + both)
        state = [torch.randn(rows, batch, n, dtype=torch.float64) for n in (3, 5)]
        return (x, tuple(state)) if given else (x,)

    example = call(7, 4) if batch_first else call(4, 7)
    # the first axis is the batch to torch.export: a length moves as well
    axes = {"x": {1}} if batch_first else {}
    graph = capture(net, example, {}, dynamic_axes(net, example, {}, axes=axes))
    rnn = next(node for node in graph.nodes if "lstm" in str(node.target))
    states: Any = rnn.args[1]
    assert [state.meta["val"].shape[2] for state in states] == [5, 5]
    other = call(2, 9) if batch_first else call(4, 3)
    torch.testing.assert_close(
        pytree.tree_leaves(graph.module(*other)),
        pytree.tree_leaves(net(*other)),
        rtol=1e-10,
        atol=1e-12,
    )
