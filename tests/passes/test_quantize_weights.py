"""quantize-weights: integers and scales in the weight's place, which hold what rounding by hand gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.expressions import evaluate
from normfold.ops.integers import quantized_weight, weighted
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass
from tests.ranges.nets import inverted


def stored(graph: Graph) -> list[Tensor]:
    found = (weighted(node) for node in graph.nodes)
    return [evaluate(graph.module, linear.weight) for linear in found if linear is not None]


def net() -> Graph:
    torch.manual_seed(0)
    graph = capture(perturb(inverted()), (torch.randn(2, 3, 8, 8),))
    return run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))[0]


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
def test_rounded_by_hand(bits: int) -> None:
    graph, top = net(), 2 ** (bits - 1) - 1
    after, _ = run_pipeline(graph, parse(f"quantize-weights{{bits={bits}}}"))
    assert all(quantized_weight(linear) for node in after.nodes if (linear := weighted(node)))
    for before, found in zip(stored(graph), stored(after), strict=True):
        scale = before.flatten(1).abs().amax(1).reshape(-1, *[1] * (before.dim() - 1)) / top
        torch.testing.assert_close(found, (before / scale).round() * scale, rtol=1e-5, atol=1e-6)


def test_a_channel_of_zeros_stays_zero() -> None:
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[2] = 0
    graph, _ = run_pipeline(capture(layer.eval(), (torch.randn(2, 8),)), parse("quantize-weights"))
    (weight,) = stored(graph)
    assert bool((weight[2] == 0).all())
    assert bool(weight.isfinite().all())


def test_blocks_have_a_scale_each() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 4)
    graph, _ = run_pipeline(
        capture(layer.eval(), (torch.randn(2, 48),)), parse("quantize-weights{bits=4 block=16}")
    )
    (weight,) = stored(graph)  # (inputs, outputs)
    for n, rows in enumerate(layer.weight.detach().split(16, 1)):
        scale = rows.abs().amax(1, keepdim=True) / 7
        wanted = ((rows / scale).round() * scale).t()
        torch.testing.assert_close(
            weight[16 * n : 16 * n + 16].float(), wanted, rtol=1e-5, atol=1e-6
        )


def test_only_the_layers_that_are_named() -> None:
    module = Compose(
        lambda m, x: m.second(m.first(x)), first=nn.Linear(8, 8), second=nn.Linear(8, 4)
    )
    graph = capture(module.eval(), (torch.randn(2, 8),))
    _, reports = run_pipeline(graph, parse("quantize-weights{layers=sec*}"))
    assert [item.site for item in reports[0].applied] == ["second"]
    (declined,) = reports[0].declined
    assert (declined.code, declined.detail) == ("NF126", "`layers` does not name it")
    assert "norm" not in declined.reason, "it is a linear"
    assert "quantize-weights{layers=...}" in declined.hint


@pytest.mark.parametrize(
    "second", ["quantize-weights", "quantize-dynamic", "bake,quantize-weights"]
)
def test_a_weight_is_put_on_one_grid(second: str) -> None:
    layer = nn.Linear(32, 4).eval()
    graph = capture(layer, (torch.randn(2, 32),))
    _, reports = run_pipeline(graph, parse(f"quantize-weights{{bits=4}},{second}"))
    assert [item.code for item in reports[-1].declined] == ["NF130"]
    assert not reports[-1].rewrites


@pytest.mark.parametrize("block", [8, 15, 48])
def test_blocks_that_no_kernel_has(block: int) -> None:
    with pytest.raises(UsageError, match="a power of two from 16"):
        parse(f"quantize-weights{{block={block}}}")


def test_no_blocks_in_a_convolution() -> None:
    _, reports = run_pipeline(net(), parse("quantize-weights{block=16}"))
    declined = {item.site for item in reports[0].declined}
    assert {item.code for item in reports[0].declined} == {"NF129"}
    assert all("head" not in site for site in declined)


def test_golden() -> None:
    golden_pass("quantize-weights/inverted", net())


def test_layers_that_follow_each_other_in_blocks() -> None:
    """The second reads what stands in the first one's place by then, as in factorised embeddings."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)).eval()
    x = torch.randn(8, 16)
    after, _ = run_pipeline(capture(layers, (x,)), parse("quantize-weights{bits=8 block=16},bake"))
    after.module.graph.lint()
    with torch.no_grad():
        wanted, got = layers(x), after(x)
    assert float((got - wanted).norm() / wanted.norm()) < 0.02
