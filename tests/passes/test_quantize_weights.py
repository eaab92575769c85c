"""quantize-weights: integers and scales in the weight's place, which hold what rounding by hand gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.expressions import evaluate
from normfold.ops.integers import quantized_weight, weighted
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.passes import known
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


@pytest.mark.parametrize(
    "text", ["quantize-weights", "quantize-weights{bits=4}", "quantize-weights{bits=4 block=32}"]
)
def test_a_weight_that_is_on_a_grid_keeps_its_values(text: str) -> None:
    """Where no weight is as large as the grid allows, the largest one says nothing of the scale."""
    torch.manual_seed(0)
    graph = capture(known.made_mlp(), (torch.randn(2, known.WIDTH),))
    after, _ = run_pipeline(graph, parse(f"{text},bake"))
    for before, found in zip(stored(graph), stored(after), strict=True):
        wanted = before.t() if "block" in text else before
        torch.testing.assert_close(found, wanted, rtol=3e-7, atol=0)


def test_two_layers_in_a_row() -> None:
    module = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16)).eval()
    graph = capture(module, (torch.randn(2, 32),))
    _, reports = run_pipeline(graph, parse("quantize-weights{block=16},bake"))
    assert reports[0].rewrites == 2


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
        capture(layer.eval(), (torch.randn(2, 48),)), parse("quantize-weights{block=16}")
    )
    (weight,) = stored(graph)  # (inputs, outputs)
    for n, rows in enumerate(layer.weight.detach().split(16, 1)):
        scale = (rows.abs().amax(1, keepdim=True) / 127).bfloat16().float()
        wanted = ((rows / scale).round().clamp(-127, 127) * scale).t()
        torch.testing.assert_close(
            weight[16 * n : 16 * n + 16].float(), wanted, rtol=1e-5, atol=1e-6
        )


def test_feedback_errs_less_on_what_the_layer_reads() -> None:
    """Inputs that go together: what one loses, another makes up for."""
    torch.manual_seed(0)
    module = Compose(
        lambda m, x: m.second(torch.tanh(m.first(x))),
        first=nn.Linear(64, 48),
        second=nn.Linear(48, 40),
    ).eval()
    mixing = torch.randn(64, 64) @ torch.diag(torch.logspace(0, -2, 64))
    x, other = torch.randn(2, 400, 64) @ mixing
    graph = capture(module, (x,))
    graph.samples = [((x[:200],), {}), ((x[200:],), {})]
    errors = {}
    for how in ("rounding=nearest clip=true", "rounding=feedback"):
        after, reports = run_pipeline(
            graph, parse(f"quantize-weights{{bits=4 block=16 {how}}},bake")
        )
        assert reports[0].rewrites == 2
        with torch.no_grad():
            errors[how] = float((after(other) - module(other)).norm() / module(other).norm())
        names = {str(node.target) for node in after.nodes if node.op == "get_attr"}
        assert {"first.weight_int4", "second.weight_int4", "first.weight_scale"} <= names
    assert errors["rounding=feedback"] < 0.7 * errors["rounding=nearest clip=true"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Conv2d(12, 10, 3, padding=1),
        lambda: nn.Conv2d(12, 8, (3, 1), stride=2, padding=(1, 0), groups=4),
        lambda: nn.Conv2d(12, 12, 3, dilation=2, groups=12),
        lambda: nn.Conv1d(12, 6, 3, padding=1),
    ],
)
def test_feedback_of_convolutions(build: Callable[[], nn.Module]) -> None:
    """Windows of what a convolution reads go together as rows do, group by group."""
    torch.manual_seed(0)
    layer = build()
    size = (14, 14) if isinstance(layer, nn.Conv2d) else (60,)
    smooth = nn.AvgPool2d(3, 1) if isinstance(layer, nn.Conv2d) else nn.AvgPool1d(3, 1)
    x, other = torch.randn(2, 40, 12, *size)
    x, other = smooth(x) + 0.5, smooth(other) + 0.5
    graph = capture(layer.eval(), (x,))
    graph.samples = [((x[:20],), {}), ((x[20:],), {})]
    errors = {}
    for how in ("nearest", "feedback"):
        text = f"quantize-weights{{bits=4 rounding={how}}},bake"
        after, reports = run_pipeline(graph, parse(text))
        assert reports[0].rewrites == 1
        with torch.no_grad():
            errors[how] = float((after(other) - layer(other)).norm())
    assert errors["feedback"] < 0.85 * errors["nearest"]


def test_feedback_wants_samples() -> None:
    graph = capture(nn.Linear(32, 4).eval(), (torch.randn(2, 32),))
    _, reports = run_pipeline(graph, parse("quantize-weights{bits=4 block=16 rounding=feedback}"))
    assert [item.code for item in reports[0].declined] == ["NF127"]


def test_feedback_leaves_what_has_no_rows_to_another_rounding() -> None:
    layer = nn.ConvTranspose2d(4, 4, 3).eval()
    graph = capture(layer, (torch.randn(2, 4, 6, 6),))
    graph.samples = [(graph.args, {})]
    text = "quantize-weights{rounding=feedback},quantize-weights"
    _, (first, second) = run_pipeline(graph, parse(text))
    assert (first.rewrites, second.rewrites) == (0, 1)


@pytest.mark.parametrize("rounding", ["nearest", "feedback"])
def test_a_weight_that_two_layers_read_is_stored_once(rounding: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    module = Compose(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=layer).eval()
    x = torch.randn(64, 32)
    graph = capture(module, (x,))
    graph.samples = [((x,), {})]
    after, _ = run_pipeline(
        graph, parse(f"quantize-weights{{bits=4 block=16 rounding={rounding}}},bake")
    )
    names = [str(node.target) for node in after.nodes if node.op == "get_attr"]
    assert sorted(names) == ["layer.bias", "layer.weight_int4", "layer.weight_scale"]


def test_no_blocks_where_the_matrix_stands_on_the_left() -> None:
    """W @ x reads features along the rows of x: blocks would lie along the wrong axis."""
    module = Compose(lambda m, x: m.layer.weight @ x, layer=nn.Linear(32, 8, bias=False)).eval()
    graph = capture(module, (torch.randn(32, 5),), dynamic=None)
    _, reports = run_pipeline(graph, parse("quantize-weights{block=16}"))
    assert [item.code for item in reports[0].declined] == ["NF129"]
    assert not reports[0].rewrites


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


def test_8_bit_floats_by_hand() -> None:
    """One scale for all of a weight, a power of two; a matrix lies as (inputs, outputs) before its product."""
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.mul_(3).view(-1)[0] = 5.0
    graph, _ = run_pipeline(
        capture(layer.eval(), (torch.randn(2, 32),)), parse("quantize-weights{grid=e4m3}")
    )
    (weight,) = stored(graph)
    scale = 2.0**-6  # 5 / 2^-6 = 320 <= 448 < 5 / 2^-7
    wanted = (layer.weight.detach() / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(weight.float(), wanted.t(), rtol=0, atol=0)
    baked, _ = run_pipeline(graph, parse("bake"))
    kinds = {node.meta["val"].dtype for node in baked.nodes if node.op == "get_attr"}
    assert kinds == {torch.float32, torch.float8_e4m3fn}


@pytest.mark.parametrize(
    ("target", "layer", "shape", "why"),
    [
        ("trt", nn.Conv2d(3, 32, 3), (2, 3, 9, 9), "3 inputs and 32 outputs"),
        ("trt", nn.Conv2d(32, 32, 3, groups=4), (2, 32, 9, 9), "8 inputs and 8 outputs per group"),
        ("trt", nn.Conv2d(16, 16, 7), (2, 16, 9, 9), "a window of 49 elements, at most 32"),
        ("trt", nn.ConvTranspose2d(16, 16, 3), (2, 16, 9, 9), "a transposed convolution"),
        ("trt", nn.Conv2d(16, 32, 3, groups=1), (2, 16, 9, 9), ""),
        ("trt", nn.Conv2d(32, 64, 3, groups=2), (2, 32, 9, 9), ""),
        ("trt-rtx", nn.Conv2d(16, 16, 3), (2, 16, 9, 9), "products of matrices alone"),
        ("trt-rtx", nn.Linear(8, 32), (2, 8), "8 inputs and 32 outputs"),
        ("trt-rtx", nn.Linear(32, 10), (2, 32), "32 inputs and 10 outputs"),
        ("trt-rtx", nn.Linear(16, 48), (2, 5, 16), ""),
    ],
)
def test_layers_without_a_kernel(
    target: str, layer: nn.Module, shape: tuple[int, ...], why: str
) -> None:
    graph = capture(layer.eval(), (torch.randn(shape),))
    text = f"quantize-weights{{grid=e4m3 target={target}}}"
    _, (report,) = run_pipeline(graph, parse(text))
    assert report.rewrites == (not why)
    assert [(x.code, x.detail.startswith(why)) for x in report.declined] == (
        [("NF132", True)] if why else []
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("grid=e4m3 bits=4", "are for integers"),
        ("grid=e4m3 block=32", "are for integers"),
        ("grid=e4m3 rounding=squant", "are for integers"),
        ("grid=e4m3 target=ort-x86", "takes no floats of 8 bits"),
        ("target=pt2", "takes no integers"),
    ],
)
def test_what_8_bit_floats_have_not(options: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse(f"quantize-weights{{{options}}}")


@pytest.mark.parametrize("options", ["block=16", "grid=e4m3"])
def test_a_weight_on_the_left_of_a_product(options: str) -> None:
    """Blocks are of what stands on the right; one scale serves either side."""
    net = Compose(lambda m, x: m.w.weight @ x, w=nn.Linear(16, 32))
    x = torch.randn(16, 24)
    graph = capture(net.eval(), (x,), dynamic=None)
    after, (report,) = run_pipeline(graph, parse(f"quantize-weights{{{options}}}"))
    assert [item.code for item in report.declined] == (["NF129"] if "block" in options else [])
    with torch.no_grad():
        assert float((after(x) - graph(x)).norm() / graph(x).norm()) < 0.05
