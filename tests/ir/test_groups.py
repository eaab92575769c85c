"""Groups against the ops themselves: where they are carried, centring before the op is centring behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.ops import groups as grouping
from normfold.ops.layout import LayoutError
from normfold.ops.reads import operands, producer
from normfold.ops.table import Kind, kind_of
from tests.nets import Compose

SHAPE = (2, 3, 4, 6)


def project(x: Tensor, groups: Tensor) -> Tensor:
    """x minus, for every element, the mean of its group; the definition, element by element."""
    ids = written_out(groups, x.shape).reshape(-1)
    flat = x.reshape(-1)
    inside = ids >= 0
    if not bool(inside.any()):
        return x
    total = torch.zeros(int(ids.max()) + 1, dtype=x.dtype).index_add(0, ids[inside], flat[inside])
    means = total / torch.bincount(ids[inside], minlength=len(total))
    return torch.where(inside, flat - means[ids.clamp_min(0)], flat).reshape(x.shape)


def written_out(groups: Tensor, shape: torch.Size) -> Tensor:
    """A number for every element: each index of a site axis has groups of its own."""
    assert groups.dim() == len(shape), (groups.shape, shape)
    for dim, size in enumerate(shape):
        if groups.shape[dim] == 1:
            steps = torch.arange(size).reshape([-1 if at == dim else 1 for at in range(len(shape))])
            count = int(groups.max()) + 1
            groups = torch.where(groups < 0, -1, groups + steps * count)
        assert groups.shape[dim] == size
    return groups


def candidates(shape: torch.Size) -> Iterator[Tensor]:
    """One mean over each axis, its halves, a part of it; over pairs of axes; a group for every second."""
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        places = [-1 if at == dim else 1 for at in range(len(shape))]
        whole = torch.zeros(size, dtype=torch.int64)
        yield whole.reshape(places)
        yield (torch.arange(size) % 2).reshape(places)
        if size % 2 == 0:
            yield (torch.arange(size) // (size // 2)).reshape(places)
            yield torch.where(torch.arange(size) < size // 2, 0, -1).reshape(places)
        if dim:
            pair = [n if at in (dim, dim - 1) else 1 for at, n in enumerate(shape)]
            yield torch.zeros(pair, dtype=torch.int64)


@dataclass
class Op:
    """A traced function of some tensors whose result is one node."""

    node: fx.Node
    graph: fx.Graph
    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]

    @property
    def sources(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]


def trace(run: Callable[..., Tensor], *inputs: Tensor, dynamic: Any = None) -> Op:
    graph = capture(Compose(lambda m, *x: run(*x)).eval(), inputs, dynamic=dynamic).module.graph
    (end,) = (node for node in graph.nodes if node.op == "output")
    node = end.args[0]
    return Op(node[0] if isinstance(node, (tuple, list)) else node, graph, inputs, run)


def ramp(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def order(*shape: int) -> Tensor:
    return torch.stack([torch.randperm(4) for _ in range(6)]).reshape(2, 3, 4, 1)[..., :1]


X = SHAPE
OPS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "view": (lambda x: x.view(2, 3, 4, 2, 3), (X,)),
    "merge": (lambda x: x.view(2, 12, 6), (X,)),
    "heads": (lambda x: x.reshape(2, 3, 24), (X,)),
    "crosswise": (lambda x: x.reshape(2, 3, 6, 4), (X,)),
    "crosswise back": (lambda x: x.reshape(2, 3, 6, 4).reshape(2, 3, 4, 6), (X,)),
    "flatten": (lambda x: x.flatten(2), (X,)),
    "unflatten": (lambda x: x.unflatten(-1, (3, 2)), (X,)),
    "permute": (lambda x: x.permute(0, 3, 1, 2), (X,)),
    "transpose": (lambda x: x.transpose(-1, 1), (X,)),
    "unsqueeze": (lambda x: x.unsqueeze(2), (X,)),
    "squeeze": (lambda x: x.squeeze(1), ((2, 1, 4, 6),)),
    "expand": (lambda x: x.expand(2, 3, 4, 6), ((2, 1, 4, 6),)),
    "expand more": (lambda x: x.expand(2, 3, 4, 6), ((4, 6),)),
    "expand features": (lambda x: x.expand(2, 3, 4, 6), ((2, 3, 4, 1),)),
    "slice": (lambda x: x[:, :, 1:3], (X,)),
    "slice steps": (lambda x: x[..., ::2], (X,)),
    "select": (lambda x: x[:, 1], (X,)),
    "select last": (lambda x: x[..., 2], (X,)),
    "split": (lambda x: x.split(2, 2)[1], (X,)),
    "split uneven": (lambda x: x.split([2, 4], -1)[1], (X,)),
    "chunk": (lambda x: x.chunk(2, -1)[0], (X,)),
    "unbind": (lambda x: x.unbind(1)[2], (X,)),
    "cat": (lambda x, y: torch.cat([x, y], 1), (X, (2, 2, 4, 6))),
    "cat last": (lambda x, y: torch.cat([x, y], -1), (X, (2, 3, 4, 2))),
    "stack": (lambda x, y: torch.stack([x, y], 1), (X, X)),
    "stack last": (lambda x, y: torch.stack([x, y], -1), (X, X)),
    "roll": (lambda x: x.roll((1, -1), (1, 2)), (X,)),
    "roll features": (lambda x: x.roll(2, -1), (X,)),
    "flip": (lambda x: x.flip(1, 3), (X,)),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), (X,)),
    "repeat features": (lambda x: x.repeat(1, 1, 1, 2), (X,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 2), (X,)),
    "pad": (lambda x: F.pad(x, (0, 0, 1, 2)), (X,)),
    "pad features": (lambda x: F.pad(x, (1, 0)), (X,)),
    "pad ones": (lambda x: F.pad(x, (0, 0, 1, 2), value=1.0), (X,)),
    "crop": (lambda x: F.pad(x, (0, 0, -1, -1)), (X,)),
    "reflect": (lambda x: F.pad(x, (0, 0, 1, 1), mode="reflect"), (X,)),
    "replicate features": (lambda x: F.pad(x, (1, 1, 0, 0), mode="replicate"), (X,)),
    "circular": (lambda x: F.pad(x, (0, 0, 1, 1), mode="circular"), (X,)),
    "unfold": (lambda x: x.unfold(2, 2, 1), (X,)),
    "unfold features": (lambda x: x.unfold(-1, 2, 2), (X,)),
    "im2col": (lambda x: F.unfold(x, 2, stride=2), (X,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), ((2, 8, 3, 5),)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), ((2, 3, 4, 6),)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), ((2, 6, 3, 4),)),
    "clone": (lambda x: x.permute(0, 2, 1, 3).contiguous(), (X,)),
    "index": (lambda x: x[:, :, [2, 0, 3]], (X,)),
    "index features": (lambda x: x[..., [5, 3, 1, 0, 2, 4]], (X,)),
    "index twice": (lambda x: x[:, [0, 1], [2, 3]], (X,)),
    "index at run time": (lambda x, i: x[:, :, i[0, 0, :, 0]], (X, "order")),
    "index features at run time": (lambda x, i: x[..., i[0, 0, :, 0]], (X, "order")),
    "index_select": (lambda x, i: x.index_select(2, i[0, 0, :2, 0]), (X, "order")),
    "gather": (lambda x, i: x.gather(2, i.expand(-1, -1, -1, 6)), (X, "order")),
    "gather few": (lambda x, i: x.gather(2, i.expand(-1, -1, -1, 2)), (X, "order")),
    "gather each": (lambda x, i: x.gather(2, (i + torch.arange(6)) % 4), (X, "order")),
    "gather features": (lambda x, i: x.gather(-1, i), (X, "order")),
}
TRACED: dict[str, Op] = {}


def traced(name: str) -> Op:
    """Traced once; the op's own node, behind which nothing follows."""
    if name not in TRACED:
        run, shapes = OPS[name]
        inputs = tuple(order() if shape == "order" else ramp(*shape) for shape in shapes)
        TRACED[name] = trace(run, *inputs)
    return TRACED[name]


def moved(op: Op, node: fx.Node) -> bool:
    """True if all ops between the inputs and the result are in the table of movements, one behind the other."""
    while node.op != "placeholder":
        if kind_of(node) is not Kind.MOVE:
            return False
        node = operands(node)[0]
    return True


def through(op: Op, groups: Tensor) -> dict[fx.Node, Tensor]:
    """Groups of the inputs that give the result ``groups``, through however many nodes the op became."""
    found, queue = dict[fx.Node, Tensor](), [(op.node, groups)]
    while queue:
        node, wanted = queue.pop()
        if node.op == "placeholder":
            assert node not in found or torch.equal(found[node], wanted)
            found[node] = wanted
        else:
            queue += grouping.pull(node, wanted)
    return found


def onward(op: Op, groups: Tensor) -> Tensor | None:
    """Groups of the result when the first input has ``groups``."""
    node, last = op.node, [op.node]
    while node.op != "placeholder":
        node = operands(node)[0]
        last.append(node)
    found: Tensor | None = groups
    for source, user in zip(last[:0:-1], last[-2::-1], strict=True):
        found = None if found is None else grouping.push(user, source, found)
    return found


@pytest.mark.parametrize("name", OPS)
def test_pulled_groups_commute(name: str) -> None:
    op = traced(name)
    assert moved(op, op.node)
    result = op.run(*op.inputs)
    for groups in candidates(result.shape):
        try:
            found = through(op, groups)
        except LayoutError:
            continue
        given = [
            project(value, found[source]) if source in found else value
            for source, value in zip(op.sources, op.inputs, strict=True)
        ]
        assert torch.allclose(op.run(*given), project(result, groups), atol=1e-12), groups.tolist()


@pytest.mark.parametrize("name", OPS)
def test_pushed_groups_commute(name: str) -> None:
    """Where all inputs have the groups that the pushed ones come from."""
    op = traced(name)
    result = op.run(*op.inputs)
    for groups in candidates(op.inputs[0].shape):
        try:
            pushed = onward(op, groups)
            if pushed is None:
                given = [project(op.inputs[0], groups), *op.inputs[1:]]
                assert torch.equal(op.run(*given), result), "none reach the result"
                continue
            found = through(op, pushed)
        except LayoutError:
            continue
        given = [
            project(value, found[source]) if source in found else value
            for source, value in zip(op.sources, op.inputs, strict=True)
        ]
        assert torch.allclose(op.run(*given), project(result, pushed), atol=1e-12), groups.tolist()


CARRIED = [
    *("view", "merge", "heads", "flatten", "unflatten", "permute", "transpose", "unsqueeze"),
    *("expand", "expand more", "slice", "select", "split", "unbind", "cat", "stack", "roll"),
    *("roll features", "flip", "repeat", "repeat_interleave", "pad", "crop", "reflect"),
    *("circular", "unfold", "clone", "index", "index features", "index twice"),
    *("index at run time", "index_select", "gather", "crosswise", "crosswise back"),
]


@pytest.mark.parametrize("name", CARRIED)
def test_features_are_carried(name: str) -> None:
    """What a transformer does with its tokens is not refused."""
    op = traced(name)
    rank = op.inputs[0].dim()
    pushed = onward(op, grouping.over_last(rank, [6]))
    assert pushed is not None
    assert bool((pushed >= 0).all())
    sizes = torch.bincount(written_out(pushed, op.run(*op.inputs).shape).reshape(-1))
    assert set(sizes.tolist()) == {6}


REFUSED = [
    *("slice steps", "select last", "split uneven", "chunk", "repeat features"),
    *("pad ones", "replicate features", "gather few", "gather each", "gather features"),
    "index features at run time",
]


@pytest.mark.parametrize("name", REFUSED)
def test_cut_features_are_refused(name: str) -> None:
    op = traced(name)
    with pytest.raises(LayoutError):
        onward(op, grouping.over_last(4, [6]))


@pytest.mark.parametrize("name", ["expand features", "cat last", "pad features"])
def test_features_that_do_not_come_from_one_place_are_refused(name: str) -> None:
    op = traced(name)
    result = op.run(*op.inputs)
    with pytest.raises(LayoutError):
        through(op, grouping.over_last(result.dim(), [result.shape[-1]]))


def test_the_ops_cover_the_table() -> None:
    """What the table calls a movement is tried here, as far as export leaves it in the graph."""
    seen = set()
    for name in OPS:
        node = traced(name).node
        while node.op != "placeholder":
            seen.add(op_name(producer(node)))
            node = operands(node)[0]
    assert seen >= {
        *("view", "permute", "transpose", "unsqueeze", "squeeze", "expand", "slice", "select"),
        *("split", "split_with_sizes", "unbind", "cat", "stack", "roll", "flip", "repeat", "pad"),
        *("unfold", "im2col", "pixel_shuffle", "pixel_unshuffle", "clone", "index"),
        *("index_select", "gather"),
    } - {"split", "pad"} | ({"constant_pad_nd"} & seen), sorted(seen)


# -- parts of a fused projection --------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_part_of_a_fused_projection(at: int) -> None:
    """Groups of one of three parts: the other two are left alone."""
    op = trace(
        lambda x: x.unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)[at], ramp(2, 5, 18)
    )
    wanted = grouping.over_last(4, [3])
    part = grouping.pull_part(op.node, wanted)
    assert part is not None
    whole = through(Op(operands(op.node)[0], op.graph, op.inputs, op.run), part)[op.sources[0]]
    assert whole.shape == (1, 1, 18)
    heads = whole.reshape(3, 2, 3)
    assert sorted(heads[at].reshape(-1).tolist()) == [0, 0, 0, 1, 1, 1]
    assert bool((heads[[index for index in range(3) if index != at]] == -1).all())
    centred = op.run(project(op.inputs[0], whole))
    assert torch.allclose(centred, project(op.run(*op.inputs), wanted), atol=1e-12)


def test_what_is_no_part() -> None:
    assert grouping.pull_part(traced("roll").node, grouping.over_last(4, [6])) is None
    assert grouping.pull_part(traced("split").node, grouping.over_last(4, [6])) is not None


# -- dynamic axes -----------------------------------------------------------------------------------

DYNAMIC = (({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},),)


def test_groups_along_a_dynamic_axis_are_refused() -> None:
    """Tokens among the features: as many as in the example today, another number tomorrow."""
    op = trace(lambda x: x.transpose(1, 2), ramp(2, 6, 6), dynamic=DYNAMIC)
    assert onward(op, grouping.over_last(3, [6])) is not None
    with pytest.raises(LayoutError, match="dynamic"):
        through(op, grouping.over_last(3, [6]))
    merged = trace(lambda x: x.flatten(1), ramp(2, 5, 6), dynamic=DYNAMIC)
    with pytest.raises(LayoutError):
        onward(merged, grouping.over_last(3, [6]))


# -- canonical --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_canonical_is_the_same_partition(data: st.DataObject) -> None:
    """Renumbered at will, or with site axes written out, a partition has one canonical form."""
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    size = torch.Size(shape).numel()
    numbers = data.draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))
    groups = torch.tensor(numbers).reshape(shape)
    whole = torch.Size(max(n, 2) if n == 1 else n for n in shape)
    canonical = grouping.canonical(groups)
    x = torch.randn(whole, dtype=torch.float64)
    if bool((groups >= 0).any()):
        assert torch.allclose(project(x, canonical), project(x, groups), atol=1e-12)
    assert torch.equal(grouping.canonical(canonical), canonical)
    other = torch.tensor(data.draw(st.permutations(range(5))))
    renamed = torch.where(groups < 0, -1, other[groups.clamp_min(0)])
    assert grouping.key(grouping.canonical(renamed)) == grouping.key(canonical)
    spread = written_out(groups, whole)
    assert grouping.key(grouping.canonical(spread)) == grouping.key(
        grouping.canonical(groups.expand(shape))
    ) or bool((groups < 0).any() or groups.dim() > 1)
