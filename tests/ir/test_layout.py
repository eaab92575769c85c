"""Layouts against brute force: random chains of moves, each element tracked by running the ops on indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn import functional as F

from normfold.ir.graph import shape_of
from normfold.ops import layout
from normfold.ops.layout import NONE, LayoutError
from normfold.ops.reads import operands
from normfold.ops.table import Kind, kind_of
from tests.nets import Compose

Move = Callable[[Tensor], Tensor]


def trace(function: Callable[..., Tensor], *inputs: Tensor) -> fx.Graph:
    """The ATen graph of a function of tensors, with concrete shapes."""
    from normfold.ir import capture

    return capture(Compose(lambda m, *x: function(*x)).eval(), inputs, dynamic=None).module.graph


@st.composite
def moves(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[list[str], Move, tuple[int, ...]]:
    """One op that moves elements of a tensor of ``shape``: its name, itself, the shape behind it."""
    rank = len(shape)
    kind = draw(
        st.sampled_from(
            [
                "permute",
                "flatten",
                "split",
                "slice",
                "roll",
                "chunk",
                "select",
                "flip",
                "reflect",
                "cat",
                "unsqueeze",
            ]
        )
    )
    dim = draw(st.integers(0, rank - 1))
    size = shape[dim]
    move: Move
    if kind == "permute":
        order = draw(st.permutations(range(rank)))
        move = lambda x: x.permute(order)  # noqa: E731
    elif kind == "flatten":
        start = draw(st.integers(0, rank - 1))
        end = draw(st.integers(start, min(start + 1, rank - 1)))
        move = lambda x: x.flatten(start, end)  # noqa: E731
    elif kind == "split":
        factor = draw(st.sampled_from([f for f in (1, 2, 3, 4, 6) if size % f == 0]))
        move = lambda x: x.unflatten(dim, (factor, size // factor))  # noqa: E731
    elif kind == "slice":
        start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 2))
        move = lambda x: x[(slice(None),) * dim + (slice(start, None, step),)]  # noqa: E731
    elif kind == "roll":
        shift = draw(st.integers(0, size))
        move = lambda x: x.roll(shift, dim)  # noqa: E731
    elif kind == "chunk":
        part = draw(st.integers(0, 1))
        assume(size > 1)
        move = lambda x: x.chunk(2, dim)[part]  # noqa: E731
    elif kind == "select":
        assume(rank > 2)
        index = draw(st.integers(0, size - 1))
        move = lambda x: x.select(dim, index)  # noqa: E731
    elif kind == "flip":
        move = lambda x: x.flip(dim)  # noqa: E731
    elif kind == "reflect":
        assume(3 <= rank <= 4 and shape[-1] > 1)
        move = lambda x: F.pad(x, (1, 1, 0, 0)[: 2 * x.dim() - 4], mode="reflect")  # noqa: E731
    elif kind == "cat":
        assume(size < 8)
        move = lambda x: torch.cat([x, x], dim)  # noqa: E731
    else:
        assume(rank < 5)
        move = lambda x: x.unsqueeze(dim)  # noqa: E731
    after = tuple(move(torch.zeros(shape)).shape)
    assume(0 < torch.Size(after).numel() <= 600)
    return [kind], move, after


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Move]]:
    """A shape and up to four moves behind one another."""
    shape = start = draw(st.sampled_from([(2, 6, 4), (2, 4, 3, 6), (3, 4), (2, 12)]))
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        _, move, shape = draw(moves(shape))
        steps.append(move)
    return start, steps


def apply(steps: list[Move], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x


def path(graph: fx.Graph) -> list[fx.Node]:
    """The moves of a captured chain, in order."""
    return [
        node
        for node in graph.nodes
        if kind_of(node) is Kind.MOVE and isinstance(node.meta["val"], Tensor)
    ]


def labels(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return ids.expand(shape)


@settings(max_examples=12)
@given(chains(), st.data())
def test_push(chain: tuple[tuple[int, ...], list[Move]], data: st.DataObject) -> None:
    """A layout carried forward is the chain itself run on the labels of the elements."""
    shape, steps = chain
    dim = data.draw(st.integers(0, len(shape) - 1))
    ids = layout.channel(len(shape), dim, shape[dim])
    wanted = apply(steps, labels(ids, shape).double()).long()  # reflect has no integer kernel
    node = None
    for node in path(trace(lambda x: apply(steps, x), torch.zeros(shape))):
        source = operands(node)[0]
        if len(operands(node)) > 1:  # a tensor beside itself: push has one operand only
            return
        ids = layout.push(node, source, ids)
    assert node is None or torch.equal(labels(ids, shape_of(node)), wanted)


@settings(max_examples=12)
@given(chains(), st.data())
def test_pull(chain: tuple[tuple[int, ...], list[Move]], data: st.DataObject) -> None:
    """A layout carried back gives every element that arrives somewhere the label wanted there, or refuses."""
    shape, steps = chain
    nodes = path(trace(lambda x: apply(steps, x), torch.zeros(shape)))
    assume(nodes)
    end = shape_of(nodes[-1])
    dim = data.draw(st.integers(0, len(end) - 1))
    ids = wanted = layout.channel(len(end), dim, end[dim])
    origin = apply(steps, torch.arange(torch.Size(shape).numel()).reshape(shape).double()).long()
    pairs = list(
        zip(origin.flatten().tolist(), labels(wanted, end).flatten().tolist(), strict=True)
    )
    consistent = len(dict(pairs)) == len(set(pairs))
    try:
        for node in reversed(nodes):
            (_, ids), *rest = layout.pull(node, ids)
            assert not rest
    except LayoutError:
        beside_itself = any(len(operands(node)) > 1 for node in nodes)
        assert not consistent or beside_itself, "refused, although every element has one label"
        return
    assert consistent, "accepted, although one element would need two labels"
    found = labels(ids, shape).flatten()
    assert all(int(found[element]) == label for element, label in pairs)


@settings(max_examples=8)
@given(chains(), st.data())
def test_there_and_back(chain: tuple[tuple[int, ...], list[Move]], data: st.DataObject) -> None:
    """Pulling what was pushed gives the same labels to all that was not dropped on the way."""
    shape, steps = chain
    nodes = path(trace(lambda x: apply(steps, x), torch.zeros(shape)))
    assume(nodes and all(len(operands(node)) == 1 for node in nodes))
    dim = data.draw(st.integers(0, len(shape) - 1))
    ids = first = layout.channel(len(shape), dim, shape[dim])
    for node in nodes:
        ids = layout.push(node, operands(node)[0], ids)
    for node in reversed(nodes):
        [(_, ids)] = layout.pull(node, ids)
    back = labels(ids, shape)
    kept = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    kept[apply(steps, torch.arange(kept.numel()).reshape(shape).double()).long().flatten()] = True
    kept = kept.reshape(shape)
    assert torch.equal(back[kept], labels(first, shape)[kept])


def only(graph: fx.Graph) -> fx.Node:
    return path(graph)[-1]


def test_zero_pad_belongs_to_no_feature() -> None:
    node = only(trace(lambda x: F.pad(x, (0, 0, 1, 2)), torch.zeros(2, 3, 4)))
    ids = layout.push(node, operands(node)[0], layout.channel(3, 2, 4))
    assert ids.shape == (1, 6, 4)
    assert ids[0, :, 0].tolist() == [NONE, 0, 0, 0, NONE, NONE]


def test_a_pad_that_is_not_zero_is_refused() -> None:
    node = only(trace(lambda x: F.pad(x, (1, 1), value=2.0), torch.zeros(2, 3, 4)))
    with pytest.raises(LayoutError):
        layout.push(node, operands(node)[0], layout.channel(3, 1, 3))


def test_cat_pulls_each_part_its_slice() -> None:
    node = only(
        trace(lambda x, y: torch.cat([x, y], 1), torch.zeros(2, 3, 4), torch.zeros(2, 2, 4))
    )
    (_, left), (_, right) = layout.pull(node, layout.channel(3, 1, 5))
    assert left.flatten().tolist() == [0, 1, 2]
    assert right.flatten().tolist() == [3, 4]


def test_unread_elements_take_part_only_where_nobody_else_reads() -> None:
    graph = trace(lambda x: F.relu(x)[:, :, 1:], torch.zeros(2, 3, 4))
    [(_, ids)] = layout.pull(only(graph), layout.channel(3, 1, 3))
    assert ids.shape == (1, 3, 1)
    graph = trace(lambda x: F.relu(x)[:, :, 1:] * F.relu(x).sum(), torch.zeros(2, 3, 4))
    y = trace(lambda x: (lambda r: r[:, :, 1:] * r.sum())(F.relu(x)), torch.zeros(2, 3, 4))
    [(_, ids)] = layout.pull(
        next(n for n in y.nodes if kind_of(n) is Kind.MOVE), layout.channel(3, 1, 3)
    )
    assert ids.shape == (1, 3, 4)
    assert ids[0, :, 0].tolist() == [NONE] * 3


def test_moves_by_run_time_data_are_refused() -> None:
    graph = trace(
        lambda x, i: torch.index_select(x, 1, i), torch.zeros(2, 3, 4), torch.tensor([1, 0, 2])
    )
    with pytest.raises(LayoutError, match="run-time data"):
        layout.pull(only(graph), layout.channel(3, 1, 3))


def test_axis_of_and_along() -> None:
    ids = layout.channel(4, 1, 3)
    assert layout.axis_of(ids) == 1
    assert layout.along(ids, 1, 3) is not None
    assert layout.along(ids, 2, 5) is None
    assert layout.axis_of(torch.zeros(1, 1)) is None


def test_broadcast_operands() -> None:
    graph = trace(lambda x, y: x + y, torch.zeros(2, 3, 4), torch.zeros(3, 1))
    x, y = [node for node in graph.nodes if node.op == "placeholder"]
    ids = layout.channel(3, 1, 3)
    assert layout.for_operand(ids, x).shape == (1, 3, 1)
    assert layout.for_operand(ids, y).shape == (3, 1)
    with pytest.raises(LayoutError):
        layout.for_operand(layout.channel(3, 2, 4), y)
