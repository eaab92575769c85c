"""Groups: which elements of a tensor share one mean, carried through ops that keep the groups whole.

Groups are an int64 tensor that broadcasts against a tensor: an axis of size 1 is a *site* axis (every index
has groups of its own), and along the other axes the entries number the groups; -1 marks elements that belong
to none. One mean over the last axis is ``zeros(1, 1, d)``, one per fused head ``[[[0, 0, 1, 1, ...]]]``.

Centring is the projection P that subtracts from every element the mean of its group. An op carries groups if
P commutes with it: ``op(P x) = P op(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import facts
from normfold.ir.facts import Fact
from normfold.ir.graph import argument, is_symbolic, op_name, shape_of
from normfold.ops import layout
from normfold.ops.layout import NONE, LayoutError
from normfold.ops.linear import zero_pad_of
from normfold.ops.reads import operands, producer
from normfold.ops.table import row_of


@dataclass(frozen=True)
class Centred(Fact):
    """The mean of every group of features is zero.

    Not kept beside a file: features are left out because of it, which a wrong file must not bring about.

    Attributes:
        groups: int64, broadcasts against the tensor.
    """

    kind_name: ClassVar[str] = "centred"
    groups: Tensor


def centred_groups(node: fx.Node) -> Tensor | None:
    """The groups of a tensor's features whose means are zero."""
    found = facts.get(node, Centred)
    return found.groups if found is not None else None


_LARGEST = 1 << 16  # elements of a block that is looked at: fused projections, not images
_PARTS = {"select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind"}
_PARTS |= {"unsafe_split", "unsafe_chunk", "tensor_split"}


def over_last(rank: int, sizes: list[int]) -> Tensor:
    """Groups of a norm over the last axes: one mean for all of them."""
    return torch.zeros((1,) * (rank - len(sizes)) + tuple(sizes), dtype=torch.int64)


def canonical(groups: Tensor) -> Tensor:
    """The same partition with numbers in order of appearance, and site axes folded to size 1."""
    groups = _renumber(groups)  # sites are told by how many groups there are
    for dim, size in enumerate(groups.shape):
        if size > 1 and _is_site(groups, dim, size):
            groups = _renumber(groups.narrow(dim, 0, 1))
    return groups


def key(groups: Tensor) -> tuple[tuple[int, ...], bytes]:
    """What two equal partitions of one tensor have in common (of canonical groups)."""
    return tuple(groups.shape), groups.numpy().tobytes()


def _is_site(groups: Tensor, dim: int, size: int) -> bool:
    first = groups.select(dim, 0)
    count = int(groups.amax()) + 1
    if count % size or count < size or bool((first < 0).all()):
        return False
    wanted = _renumber(first)
    if int(wanted.amax()) + 1 != count // size:  # slices share groups
        return False
    return all(torch.equal(_renumber(groups.select(dim, at)), wanted) for at in range(1, size))


def _renumber(groups: Tensor) -> Tensor:
    flat = groups.reshape(-1)
    found, inverse = torch.unique(flat, return_inverse=True)
    first = torch.full((len(found),), flat.numel(), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(flat.numel()), "amin")
    if len(found) and int(found[0]) < 0:
        first[0] = -1
    rank = torch.argsort(torch.argsort(first))
    if len(found) and int(found[0]) < 0:
        rank = rank - 1
    return rank[inverse].reshape(groups.shape)


def is_simple(groups: Tensor) -> bool:
    """True if all elements of a site are one group, so that one mean over whole axes centres them."""
    return bool((groups == 0).all())


def axes(groups: Tensor) -> list[int]:
    """The axes that groups run along."""
    return [dim for dim, size in enumerate(groups.shape) if size > 1]


def for_operand(groups: Tensor, operand: fx.Node) -> Tensor:
    """Groups of one operand of an elementwise op whose result has ``groups``.

    Raises:
        LayoutError: the operand is broadcast along an axis of the groups.
    """
    shape = shape_of(operand)
    groups = layout.for_operand(groups, operand)
    if any(shape[dim] != groups.shape[dim] for dim in axes(groups)):
        raise LayoutError("an operand is the same for every feature")
    return groups


def push(user: fx.Node, source: fx.Node, groups: Tensor) -> Tensor | None:
    """Groups of a MOVE op's result when its operand ``source`` has ``groups``; None if none reach it.

    Raises:
        LayoutError: the op separates elements of a group, or mixes them with others.
    """
    kept = _along_sites(user, groups)
    if kept is not None:
        return _checked(user, kept)

    def run(ids: Tensor) -> list[tuple[fx.Node, Tensor]]:
        return [(user, layout.push(user, source, ids))]

    return next((found for _, found in _carry(source, groups, run)), None)


def pull(node: fx.Node, groups: Tensor) -> list[tuple[fx.Node, Tensor]]:
    """Groups of a MOVE op's operands that give its result ``groups``; operands without any are left out.

    Raises:
        LayoutError: as `push`.
    """
    back = _sites_back(node, groups)
    if back is not None:
        return [(part, _checked(part, back)) for part in operands(node)]
    return list(_carry(node, groups, lambda ids: layout.pull(node, ids, spread=False)))


def pull_part(node: fx.Node, groups: Tensor) -> Tensor | None:
    """Groups of the tensor that ``node`` takes a part of, on that part only; None if ``node`` takes no part.

    `pull` asks for the same groups on all of a site axis, read or not, as the tokens of a stream want it; a
    fused projection wants just the rows that are read.
    """
    op = producer(node)
    if op_name(op) not in _PARTS:
        return None
    rank, dim = len(shape_of(operands(node)[0])), int(argument(op, "dim", 0))
    dim %= rank
    inner = groups.unsqueeze(dim) if op_name(op) in ("select", "unbind") else groups
    if inner.shape[dim] != 1:
        return None
    source = operands(node)[0]
    if is_symbolic(source.meta["val"].shape[dim]):
        return None
    size = shape_of(source)[dim]
    count = int(inner.amax()) + 1
    index = layout.push(node, source, layout.channel(rank, dim, size)).reshape(-1)
    if index.numel() == size:
        return None
    whole = torch.full([size if axis == dim else n for axis, n in enumerate(inner.shape)], NONE)
    for place, at in enumerate(index.tolist()):
        part = torch.where(inner < 0, inner, inner + place * count)
        whole.narrow(dim, at, 1).copy_(part)
    return canonical(whole)


def _along_sites(user: fx.Node, groups: Tensor) -> Tensor | None:
    """Fast path, which also knows run-time indices: an op that moves whole sites leaves the groups alone."""
    op = producer(user)
    if op_name(op) == "gather":
        return groups if _gathers_sites(op, groups) else None
    return layout.beside(user, groups) if _pads_nothing(op) else None


def _sites_back(node: fx.Node, groups: Tensor) -> Tensor | None:
    op = producer(node)
    if op_name(op) == "gather":
        return groups if _gathers_sites(op, groups) else None
    return layout.in_front(node, operands(node)[0], groups) if _pads_nothing(op) else None


def _gathers_sites(op: fx.Node, groups: Tensor) -> bool:
    """True if a gather takes the same places for every feature: its index is expanded along the features."""
    source, index, along = operands(op)[0], argument(op, "index"), axes(groups)
    if int(argument(op, "dim")) % groups.dim() in along:
        return False
    if any(shape_of(index)[dim] != shape_of(source)[dim] for dim in along):
        return False
    while row_of(index).move.order == "places":
        index = index.args[0]
    if op_name(index) not in ("expand", "repeat"):
        return False
    small = shape_of(index.args[0])
    small = (1,) * (groups.dim() - len(small)) + small
    return all(small[dim] == 1 for dim in along)


def _pads_nothing(op: fx.Node) -> bool:
    """True unless the op pads with a constant other than zero, which no centring leaves as it is."""
    if op_name(op) not in ("pad", "constant_pad_nd"):
        return True
    reflects = op_name(op) == "pad" and argument(op, "mode") != "constant"
    return reflects or zero_pad_of(op) is not None


def _carry(
    node: fx.Node, groups: Tensor, run: Callable[[Tensor], list[tuple[fx.Node, Tensor]]]
) -> Iterator[tuple[fx.Node, Tensor]]:
    """Run a movement on one number per element, and see where the groups went."""
    for block in _blocks(node, groups):
        ends = _once(block, run)
        if ends is not None:
            break
    else:
        raise LayoutError("features and other axes are merged")
    flat = block.reshape(-1)
    sizes = torch.bincount(flat[flat >= 0])
    for end, ids in ends:
        carried = torch.where(ids < 0, NONE, flat[ids.clamp_min(0)])
        there = torch.bincount(carried[carried >= 0].reshape(-1), minlength=len(sizes))
        if not bool(there.any()):
            continue
        if bool(((there > 0) & (there != sizes)).any()):
            raise LayoutError("only a part of the features is taken")
        yield end, _checked(end, canonical(carried))


def _once(
    block: Tensor, run: Callable[[Tensor], list[tuple[fx.Node, Tensor]]]
) -> list[tuple[fx.Node, Tensor]] | None:
    """The ends with every element of the block at most once in each, else None."""
    ends = run(torch.arange(block.numel()).reshape(block.shape))
    for _, ids in ends:
        there = ids[ids >= 0]
        if there.unique().numel() != there.numel():
            return None
    return ends


def _blocks(node: fx.Node, groups: Tensor) -> Iterator[Tensor]:
    """The groups themselves, then with site axes written out: an op may merge one with the features."""
    yield groups
    shape = shape_of(node)
    free = [dim for dim, size in enumerate(shape) if groups.shape[dim] == 1 and size > 1]
    free = [dim for dim in free if not is_symbolic(node.meta["val"].shape[dim])]
    for number in range(1, len(free) + 1):
        for dims in combinations(reversed(free), number):
            if groups.numel() * torch.Size(shape[dim] for dim in dims).numel() <= _LARGEST:
                yield _written_out(groups, shape, dims)


def _written_out(groups: Tensor, shape: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    for dim in dims:
        count = int(groups.amax()) + 1
        steps = layout.channel(groups.dim(), dim, shape[dim]) * count
        groups = torch.where(groups < 0, groups, groups + steps)
    return groups


def _checked(node: fx.Node, groups: Tensor) -> Tensor:
    """Refuse groups along an axis whose size may differ at run time."""
    sizes = node.meta["val"].shape
    if any(is_symbolic(sizes[dim]) for dim in axes(groups)):
        raise LayoutError("the features lie along a dynamic axis")
    return groups
