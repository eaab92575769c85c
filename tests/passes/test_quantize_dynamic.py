"""quantize-dynamic: products whose inputs find their grid at run time."""

from __future__ import annotations

import torch
from torch import nn

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose
from tests.passes.judge import golden_pass


def test_by_hand() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16), torch.randn(3, 5, 32)
    graph, _ = run_pipeline(capture(layer.eval(), (x,)), parse("quantize-dynamic"))
    w = layer.weight.detach().double()
    s = (w.abs().amax(1) / 127).float().double()
    q = (w / s[:, None]).round()
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    steps = ((x.double() / step).round() + zero).clamp(0, 255) - zero
    wanted = (steps @ q.t()) * step * s + layer.bias.detach()
    with torch.no_grad():
        torch.testing.assert_close(graph(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_every_call_has_its_own_grid() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, bias=False).eval()
    graph, _ = run_pipeline(capture(layer, (torch.randn(2, 32),)), parse("quantize-dynamic"))
    x = torch.randn(4, 32)
    with torch.no_grad():
        torch.testing.assert_close(graph(1000 * x) / 1000, graph(x), rtol=1e-3, atol=1e-4)
        assert not graph(torch.zeros(1, 32)).any()


def test_convolutions_stay() -> None:
    module = Compose(
        lambda m, x: m.head(m.conv(x).mean((2, 3))), conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 4)
    )
    graph, reports = run_pipeline(
        capture(module.eval(), (torch.randn(2, 3, 6, 6),)), parse("quantize-dynamic")
    )
    assert [item.site for item in reports[0].applied] == ["head"]
    assert "conv2d" in {op_name(node) for node in graph.nodes}


def test_golden() -> None:
    graph = capture(nn.Linear(32, 16).eval(), (torch.randn(3, 5, 32),))
    golden_pass("quantize-dynamic/linear", graph)
