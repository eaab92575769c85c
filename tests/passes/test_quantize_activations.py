"""quantize-activations: which tensors go on which grids, for which runtime."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.domains.observed import measure
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.intervals import range_of
from normfold.ops.integer_ops import on_grid
from normfold.ranges.ranges import merge_ranges
from normfold.rewrite import parse, run_pipeline
from normfold.target import GRIDDED, grids_of
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass
from tests.ranges.nets import conv, gated, inverted, residual
from tests.sampling import every_other

X = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def ready(build: Callable[[], nn.Module]) -> Graph:
    torch.manual_seed(0)
    graph = capture(perturb(build()), (X,))
    folded, _ = run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))
    merge_ranges(measure(folded, [(X,)]), {})
    return folded


def grids(graph: Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.target is on_grid and not is_static(node)]


@pytest.mark.parametrize(
    ("build", "target"),
    every_other((build, target) for target in GRIDDED for build in (residual, inverted, gated)),
)
def test_near_the_float_network(build: Callable[[], nn.Module], target: str) -> None:
    graph = ready(build)
    text = f"quantize-weights,quantize-activations{{target={target}}}"
    after, _ = run_pipeline(graph, parse(text))
    with torch.no_grad():
        wanted, got = graph(X), after(X)
    assert float((got - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("target", GRIDDED)
def test_the_grids_of_a_runtime(target: str) -> None:
    text = f"quantize-weights,quantize-activations{{target={target}}}"
    after, _ = run_pipeline(ready(residual), parse(text))
    for node in grids(after):
        zero = after.value(node.args[2])  # type: ignore[arg-type]
        assert str(zero.dtype) == f"torch.{grids_of(target).dtype}"
        assert not grids_of(target).symmetric or int(zero) == 0


def test_tensorrt_reads_grids_and_writes_floats() -> None:
    """Of the residual sum only the side that skips is on one."""
    after, _ = run_pipeline(
        ready(residual), parse("quantize-weights,quantize-activations{target=trt}")
    )
    (total,) = (node for node in after.nodes if op_name(node) == "add")
    sides = sorted(op_name(side) for side in total.all_input_nodes)
    assert sides == ["conv2d", "normfold::on_grid"]


def test_ranges_that_nobody_knows() -> None:
    graph = capture(perturb(residual()), (X,))
    folded, _ = run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))
    after, reports = run_pipeline(folded, parse("quantize-weights,quantize-activations"))
    assert {item.code for item in reports[-1].declined} == {"NF128"}
    assert not grids(after)


def test_fewer_bits_stay_floats() -> None:
    """What the network reads keeps 8."""
    graph = ready(residual)
    after, _ = run_pipeline(graph, parse("quantize-weights,quantize-activations{bits=4}"))
    few = [node for node in grids(after) if node.args[5:7] == (0, 15)]
    full = [node for node in grids(after) if node.args[5:7] == (0, 255)]
    assert few
    assert len(few) + len(full) == len(grids(after))
    assert any(node.all_input_nodes[0].op == "placeholder" for node in full)
    baked, _ = run_pipeline(after, parse("bake"))
    assert [node.args[5:7] for node in grids(baked)] == [(0, 15)] * len(few)


def test_a_clipped_activation_needs_no_op() -> None:
    """ReLU6 within [0, 6] is the grid itself."""
    module = Compose(
        lambda m, x: m.last(F.relu6(m.first(x))), first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1)
    )
    after, _ = run_pipeline(ready(lambda: module), parse("quantize-weights,quantize-activations"))
    for node in grids(after):
        source = node.args[0]
        if op_name(source) in ("relu6", "hardtanh"):  # type: ignore[arg-type]
            scale, zero = (after.value(node.args[n]) for n in (1, 2))  # type: ignore[arg-type]
            assert int(zero) == 0
            assert float(scale) * 255 <= 6.0 + 1e-6


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_8_bit_floats(target: str) -> None:
    """Scales are powers of two with room for twice the range; of a residual sum nothing is on a grid."""
    graph = ready(residual)
    text = f"quantize-weights{{grid=e4m3}},quantize-activations{{target={target} grid=e4m3}}"
    after, _ = run_pipeline(graph, parse(text))
    assert grids(after)
    for node in grids(after):
        scale, zero = (after.value(node.args[n]) for n in (1, 2))  # type: ignore[arg-type]
        interval = range_of(node.args[0])  # type: ignore[arg-type]
        assert interval is not None
        most = 2 * max(-interval.low, interval.high) / float(scale)
        assert float(scale).hex().startswith("0x1.0")
        assert 224 < most <= 448
        assert zero.dtype == torch.float8_e4m3fn
    sums = [node for node in after.nodes if op_name(node) == "add"]
    assert sums
    assert on_grid not in {side.target for total in sums for side in total.all_input_nodes}
    with torch.no_grad():
        assert float((after(X) - graph(X)).norm() / graph(X).norm()) < 0.15


def test_floats_have_8_bits_only() -> None:
    with pytest.raises(UsageError, match="is for integers"):
        parse("quantize-activations{target=trt grid=e4m3 bits=4}")


def test_golden() -> None:
    golden_pass("quantize-activations/residual", ready(residual), "quantize-weights")


def parted() -> nn.Module:
    """Halves of the channels go different ways, as in CSPNet and ShuffleNet."""

    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = F.relu(m.stem(x)).split(4, 1)
        return m.head(torch.cat((m.left(left), m.right(right)), 1).mean((2, 3)))  # type: ignore[no-any-return]

    return Compose(
        forward, stem=conv(3, 8), left=conv(4, 8), right=conv(4, 8), head=nn.Linear(16, 5)
    )


@pytest.mark.parametrize("target", GRIDDED)
def test_the_parts_of_a_split_are_on_its_grid(target: str) -> None:
    graph = ready(parted)
    text = f"quantize-weights,quantize-activations{{target={target}}}"
    after, _ = run_pipeline(graph, parse(text))
    with torch.no_grad():
        wanted, got = graph(X), after(X)
    assert float((got - wanted).norm() / wanted.norm()) < 0.1
    if grids_of(target).outputs:
        reads = [node for node in grids(after) if node.args[0].target is operator.getitem]  # type: ignore[union-attr]
        assert len(reads) == 2
        assert len({float(after.value(node.args[1])) for node in reads}) == 1  # type: ignore[arg-type]
