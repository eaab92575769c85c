"""Feature spaces: tensors that share one set of features, with their writers, readers and symmetry.

A space is found from one tensor and its feature axis by flooding, in both directions, through every op that
keeps features apart (movement, sums, averages, products with a number). What produces a member by other
means is a writer, what consumes one is a reader. The readers and writers decide the symmetry: which
transforms of the coordinates nobody sees, or everybody can absorb.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import Graph, argument, shape_of
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.linear import Linear, linear_of
from normfold.ops.mixing import mixed, through_mix
from normfold.ops.reads import operands, producer, reads_shape_only, uses
from normfold.ops.table import Kind, kind_of, norm_of
from normfold.spaces.symmetry import (
    HOMOGENEOUS,
    LAYER_NORM,
    LAYER_NORM_WITH_GAIN,
    LINEAR,
    NONE,
    PER_CHANNEL,
    POINTWISE,
    RMS_NORM,
    RMS_NORM_WITH_GAIN,
    Symmetry,
    common,
)


@dataclass
class Space:
    """One feature space. ``members`` maps each tensor to its layout; readers may appear several times."""

    width: int
    members: dict[fx.Node, Tensor] = field(default_factory=dict)
    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)

    @property
    def symmetry(self) -> Symmetry:
        """What every reader and writer leaves."""
        return common([*map(_written, self.writers), *map(_read, self.readers)])


def space_of(value: fx.Node, dim: int) -> Space:
    """The space that axis ``dim`` of ``value`` belongs to.

    Tensors that see only part of the features, or see them mixed up with others, count as readers.
    """
    width = shape_of(value)[dim]
    space = Space(width)
    stack = [(value, layout.channel(len(shape_of(value)), dim, width))]
    while stack:
        node, ids = stack.pop()
        if node in space.members:
            continue
        space.members[node] = ids
        stack += _upstream(node, ids, space)
        stack += _downstream(node, ids, space)
    return space


def _upstream(node: fx.Node, ids: Tensor, space: Space) -> Iterator[tuple[fx.Node, Tensor]]:
    try:
        sources = list(_sources(node, ids))
    except LayoutError:
        sources = []
    if not sources or any(_incomplete(part, space.width) for _, part in sources):
        space.writers.append(node)
        return
    for source, part in sources:
        if is_static(source):
            space.writers.append(source)
        else:
            yield source, part


def _sources(node: fx.Node, ids: Tensor) -> Iterator[tuple[fx.Node, Tensor]]:
    """The tensors that hold the same features in front of ``node``; none if ``node`` writes the space."""
    kind = kind_of(node) if not is_static(node) else Kind.STOP
    if kind is Kind.MOVE:
        yield from layout.pull(node, ids)
    elif kind is Kind.ADD or (kind is Kind.PRODUCT and len(operands(node)) == 1):
        for operand in operands(node):
            yield operand, layout.for_operand(ids, operand)
    elif kind is Kind.MIX:
        yield operands(node)[0], through_mix(node, ids)


def _downstream(node: fx.Node, ids: Tensor, space: Space) -> Iterator[tuple[fx.Node, Tensor]]:
    for use in uses(node):
        user = use.user
        if reads_shape_only(user, use.position):
            continue
        try:
            carried = _carried(user, node, ids)
        except LayoutError:
            carried = None
        if carried is None or _incomplete(carried, space.width):
            space.readers.append(user)
        else:
            yield user, carried


def _carried(user: fx.Node, node: fx.Node, ids: Tensor) -> Tensor | None:
    kind = kind_of(user)
    if kind is Kind.MOVE:
        joined = len(operands(user)) > 1 and len(shape_of(user)) == ids.dim()
        if joined and (beside := layout.beside(user, ids)) is not None:
            return beside  # joined along another axis: the other parts are of the same space
        return layout.push(user, node, ids)
    if kind is Kind.ADD or (kind is Kind.PRODUCT and len(operands(user)) == 1):
        return layout.align(ids, len(shape_of(user)))
    return mixed(user, ids) if kind is Kind.MIX else None


def _incomplete(ids: Tensor, width: int) -> bool:
    """True if a tensor holds only some of the features, or holds others beside them."""
    return bool((ids < 0).any()) or ids.unique().numel() != width


def _written(node: fx.Node) -> Symmetry:
    if node.op == "placeholder":
        return NONE
    if is_static(node) or kind_of(node) is Kind.LINEAR:
        return LINEAR
    return _passes(node)


def _read(node: fx.Node) -> Symmetry:
    if node.op == "output":
        return NONE
    if linear_of(node) is not None:
        return LINEAR
    norm = norm_of(node, "shape")
    if norm is None:
        return _passes(node)
    gain = argument(node, "weight") is not None
    if norm.kind == "layer-norm":
        return LAYER_NORM_WITH_GAIN if gain else LAYER_NORM
    return RMS_NORM_WITH_GAIN if gain else RMS_NORM


def _passes(node: fx.Node) -> Symmetry:
    """What commutes with an op that works on every feature by itself."""
    if norm_of(producer(node), "batch") or kind_of(node) is Kind.AFFINE:
        return PER_CHANNEL
    return HOMOGENEOUS if kind_of(node) in (Kind.HOMOGENEOUS, Kind.MONOTONE) else POINTWISE


def spaces(graph: Graph) -> list[Space]:
    """Every space that a linear op writes, in graph order, each once."""
    found: list[Space] = []
    known: set[fx.Node] = set()
    for node in graph.nodes:
        linear: Linear | None = None if is_static(node) else linear_of(node)
        if linear is not None and node not in known:
            space = space_of(node, linear.out_dim)
            known.update(space.members)
            found.append(space)
    return found
