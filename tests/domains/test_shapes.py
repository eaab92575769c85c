"""Fake values: those that the nodes of a graph have are those that the graph makes, after every pass too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch.export import Dim

from normfold.domains.shapes import Shapes
from normfold.ir import Graph, capture
from normfold.passes import BUILT_IN
from normfold.rewrite import Rewriter, parse, run_pipeline
from normfold.testing.shapes import Describer, untrue_shapes
from tests.nets import Encoder, Norms, RepBlock, Residual
from tests.passes.orders import prepared_for

aten = torch.ops.aten
NETS: list[Any] = [
    (Residual, (2, 4, 5, 6)),
    (Encoder, (2, 5, 8)),
    pytest.param(RepBlock, (2, 4, 5, 6), marks=pytest.mark.slow),
    pytest.param(Norms, (2, 4, 5, 6), marks=pytest.mark.slow),
]
TYPES = [
    torch.float32,
    pytest.param(torch.float64, marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("build", "shape"), NETS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_pass_keeps_shapes_and_types_true(
    name: str, build: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    after, _ = run_pipeline(prepared_for(name, build, shape, dtype), parse(name))
    assert untrue_shapes(after) == []


class Sizes(nn.Module):
    """Sizes that are known at run time only, a tuple, and integers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split([3, 5], -1)
        places = torch.arange(x.shape[1])
        return (first.flatten(0, 1), second.sum(-1) + places)


def sizes() -> Graph:
    return capture(Sizes(), (torch.randn(2, 4, 8),), dynamic={"x": {0: Dim.AUTO, 1: Dim.AUTO}})


def find(graph: Graph, target: Any) -> fx.Node:
    return next(node for node in graph.nodes if node.target is target)


def test_symbols_stay_symbols() -> None:
    graph = sizes()
    assert untrue_shapes(graph) == []
    (shape, _), *_ = Describer()(find(graph, aten.add.Tensor).meta["val"])
    assert not any(size.isdigit() for size in shape)


class Chosen(nn.Module):
    """Sizes that data decide, and a branch."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: x - 1, (x,))
        return y[y > 0] * 2, torch.nonzero(x).float().sum(1)


def test_symbols_of_data_may_have_other_names() -> None:
    graph = capture(Chosen(), (torch.randn(2, 4, 8),))
    assert untrue_shapes(graph) == []
    product = find(graph, aten.mul.Tensor)
    product.meta["val"] = find(graph, aten.sum.dim_IntList).meta["val"]
    (found,) = untrue_shapes(graph)
    assert found.startswith(f"%{product.name} ")


def test_what_is_untrue_is_named() -> None:
    graph = sizes()
    add, total = find(graph, aten.add.Tensor), find(graph, aten.sum.dim_IntList)
    Shapes.of(add).retype(add, lambda _: torch.float16)
    with Shapes.of(total).active():
        total.meta["val"] = torch.zeros(3)
    found = untrue_shapes(graph)
    assert [line.split()[0].removeprefix("%") for line in found] == [total.name, add.name]
    assert "torch.float16" in found[1]


def test_an_edit_of_a_call_is_inferred() -> None:
    graph = sizes()
    total = find(graph, aten.sum.dim_IntList)
    rewriter = Rewriter(graph)
    rewriter.set_argument(total, 2, True)
    assert len(untrue_shapes(graph)) >= 1
    for node in (total, *total.users):
        if node.op == "call_function":
            rewriter.infer(node)
    assert untrue_shapes(graph) == []


def test_nothing_is_made_in_memory() -> None:
    shapes = Shapes.of(*sizes().nodes)
    with shapes.active():
        huge = torch.zeros(1 << 30, 1 << 30) + 1
    assert Describer()(huge) == [([str(1 << 30)] * 2, torch.float32)]
    parameter = shapes.parameter("weight", nn.Parameter(torch.zeros(3, 2).half()))
    assert isinstance(parameter, FakeTensor)
    assert Describer()(parameter) == [(["3", "2"], torch.float16)]
    assert shapes.parameter("number", 3) == 3


def test_types_turn_and_symbols_do_not() -> None:
    graph = sizes()
    split = find(graph, aten.split_with_sizes.default)
    before = split.meta["val"]
    Shapes.of(split).retype(split, lambda dtype: torch.float16)
    after = split.meta["val"]
    assert type(after) is type(before)
    assert [leaf.dtype for leaf in after] == [torch.float16] * 2
    assert [str(leaf.shape) for leaf in after] == [str(leaf.shape) for leaf in before]
    graph.module.graph.lint()


def test_a_graph_without_values_has_no_shapes() -> None:
    with pytest.raises(AssertionError, match="fake values"):
        Shapes.of(*fx.symbolic_trace(nn.Linear(2, 2)).graph.nodes)
