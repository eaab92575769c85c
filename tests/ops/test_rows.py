"""Facts of rows against what the ops do, and what one more row is enough for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from normfold.domains.observed import measure
from normfold.ir import Graph, capture
from normfold.ir.graph import op_name, shape_of
from normfold.ops import layout
from normfold.ops.integers import plan
from normfold.ops.layout import NONE
from normfold.ops.reads import choice_of, operands, producer, product_of, reads_no_size, uses
from normfold.ops.table import TABLE, Integers, Kind, kind_of
from normfold.ranges.ranges import merge_ranges
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.integers import IntegerForms
from normfold.target import grids_of
from tests.nets import Compose, conv, perturb

SHAPE = (2, 3, 4, 6)
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, 1:],
    "select": lambda x: x[:, :, 1],
    "narrow": lambda x: x.narrow(3, 1, 2),
    "split": lambda x: x.split(2, 3)[1],
    "chunk": lambda x: x.chunk(2, 2)[0],
    "tensor_split": lambda x: x.tensor_split(3, 3)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "cat": lambda x: torch.cat((x, x.relu()), 2),
    "stack": lambda x: torch.stack((x, x.relu()), 2),
    "stack behind all": lambda x: torch.stack((x, x.relu()), -1),
    "index": lambda x: x[:, torch.tensor([2, 0, 1, 1])],
    "index by two": lambda x: x[torch.tensor([[0, 1, 1]]), torch.tensor([[2, 0, 1]])],
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "flip": lambda x: x.flip(1, -1),
    "unfold": lambda x: x.unfold(3, 2, 2),
    "pad": lambda x: F.pad(x, (1, 0, 0, 0, 0, 2)),
    "reflect": lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect"),
}
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(-1, 1),
    "movedim": lambda x: x.movedim((0, 1), (2, 0)),
    "swapaxes": lambda x: x.swapaxes(0, 3),
}


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> Graph:
    return capture(Compose(lambda m, *x: function(*x)).eval(), inputs, dynamic=None)


def last(graph: Graph) -> fx.Node:
    """What the graph returns."""
    (found,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    return found


@pytest.mark.parametrize("name", MOVES)
def test_axes_that_a_movement_leaves_alone(name: str) -> None:
    node = last(graph_of(MOVES[name], torch.randn(SHAPE)))
    source = operands(node)[0]
    assert kind_of(node) is Kind.MOVE
    kept = layout.kept_axes(producer(node), len(SHAPE))
    assert kept
    for axis in range(len(SHAPE)):
        ids = layout.channel(len(SHAPE), axis, SHAPE[axis])
        found = layout.beside(node, ids)
        assert (found is not None) == (axis in kept)
        if found is None:
            continue
        back = layout.in_front(node, source, found)
        assert back is not None
        assert torch.equal(back, ids)
        full = layout.push(node, source, ids.expand(SHAPE).contiguous())  # by running the op
        inside = full != NONE  # neither padded nor of another operand
        assert torch.equal(full[inside], found.expand(full.shape)[inside])


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_axes(name: str) -> None:
    node = last(graph_of(ORDERS[name], torch.randn(SHAPE)))
    sizes = [shape_of(node)[axis] for axis in range(len(SHAPE))]
    assert [SHAPE[layout.axis_before(node, axis) or 0] for axis in range(len(SHAPE))] == sizes
    ids = torch.arange(48).reshape(2, 1, 4, 6)
    assert torch.equal(layout.push(node, operands(node)[0], ids), ORDERS[name](ids))


def test_factors_and_divisors() -> None:
    x, y = torch.randn(3, 4), torch.rand(3, 4) + 1

    def seen(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, int, float] | None:
        found = product_of(last(graph_of(function, x, y)))
        if found is None:
            return None
        return len(found.factors), len(found.divisors), found.number

    assert seen(lambda x, y: x * y) == (2, 0, 1.0)
    assert seen(lambda x, y: x / y) == (1, 1, 1.0)
    assert seen(lambda x, y: y + x / 4) is None  # a sum
    assert seen(lambda x, y: x / 4) == (1, 0, 0.25)
    assert seen(lambda x, y: x * -3) == (1, 0, -3.0)
    assert seen(lambda x, y: -x) == (1, 0, -1.0)
    assert seen(lambda x, y: torch.div(x, y, rounding_mode="floor")) is None
    assert seen(lambda x, y: x / 0) is None


def test_choices_by_a_mask() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    both = choice_of(last(graph_of(lambda x, y: torch.where(x > 0, x, y), x, y)))
    assert both is not None
    assert len(both.tensors) == 2
    assert not both.numbers
    filled = choice_of(last(graph_of(lambda x, y: x.masked_fill(y > 0, 0.5), x, y)))
    assert filled is not None
    assert len(filled.tensors) == 1
    assert filled.numbers == [0.5]
    assert op_name(filled.mask) == "gt"
    assert choice_of(last(graph_of(lambda x, y: x + y, x, y))) is None


def test_readers_that_look_at_no_size_of_an_axis() -> None:
    x = torch.randn(2, 3, 4)

    def net(x: Tensor, y: Tensor) -> Tensor:
        return y.type_as(x) + torch.zeros_like(x).sum() + y.new_ones(x.shape[0], 1, 1) * x

    graph = capture(Compose(lambda m, x, y: net(x, y)).eval(), (x, x.double()), dynamic="batch")
    node = next(node for node in graph.nodes if node.op == "placeholder")
    found = {
        op_name(use.user): [reads_no_size(use.user, use.position, axis) for axis in range(3)]
        for use in uses(node)
    }
    assert found["type_as"] == [True, True, True]
    assert found["sym_size"] == [False, True, True]
    assert found["zeros_like"] == [False, False, False]
    assert found["mul"] == [False, False, False]


def _activated(function: Callable[[Tensor], Tensor]) -> Graph:
    torch.manual_seed(0)
    module = Compose(lambda m, x: m.b(function(m.a(x))), a=conv(), b=conv())
    return capture(perturb(module), (torch.randn(2, 4, 5, 6),))


def test_an_activation_with_an_integer_kernel_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another activation runs in integers as soon as its row says that a runtime looks it up."""
    grids = grids_of("ort-x86")

    def between(function: Callable[[Tensor], Tensor]) -> bool:
        graph = _activated(lambda x: function(function(x)))
        merge_ranges(measure(graph, [(torch.randn(2, 4, 5, 6),)]), {})
        quantized, _ = run_pipeline(graph, parse("bake,quantize-weights"))
        node = next(node for node in quantized.nodes if op_name(node) in ("tanh", "sigmoid"))
        return node in plan(quantized, grids).tensors  # the first, which no linear op reads

    assert between(torch.sigmoid)
    assert not between(torch.tanh)
    monkeypatch.setitem(TABLE, "tanh", replace(TABLE["tanh"], integers=Integers("table")))
    assert between(torch.tanh)


def test_a_gate_with_an_integer_kernel_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(graph: Graph) -> set[str]:
        IntegerForms().run(graph)
        return {op_name(node) for node in graph.nodes}

    assert {"sigmoid", "mul"} <= written(_activated(F.silu))
    assert "hardswish" in written(_activated(F.hardswish))
    row = replace(TABLE["hardsigmoid"], integers=Integers("table"))
    monkeypatch.setitem(TABLE, "hardsigmoid", row)
    assert {"hardsigmoid", "mul"} <= written(_activated(F.hardswish))
