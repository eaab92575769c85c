"""Feature spaces: tensors that share one set of features, with their writers, readers and symmetry.

A space is found from one tensor and its feature axis, in both directions, through every op that a matrix of
features commutes with (`carriers`). What produces a member by other
means is a writer, what consumes one is a reader. The readers and writers decide the symmetry: which
transforms of the coordinates nobody sees, or everybody can absorb.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import Graph, argument, shape_of
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.linear import Linear, linear_of
from normfold.ops.reads import producer
from normfold.ops.table import Kind, kind_of, norm_of
from normfold.spaces.carriers import FEATURES
from normfold.spaces.symmetry import (
    HOMOGENEOUS,
    LAYER_NORM,
    LAYER_NORM_WITH_GAIN,
    LINEAR,
    NONE,
    PER_CHANNEL,
    PER_FACTOR,
    POINTWISE,
    RMS_NORM,
    RMS_NORM_WITH_GAIN,
    Symmetry,
    common,
)
from normfold.spaces.traversal import Member, Traversal


@dataclass
class Space:
    """One feature space. ``members`` maps each tensor to its layout; readers may appear several times.

    ``tangled``: some tensor holds the features in two orders, as ``x + roll(x)`` does.
    """

    width: int
    members: dict[fx.Node, Tensor] = field(default_factory=dict)
    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    tangled: bool = False

    @property
    def symmetry(self) -> Symmetry:
        """What every reader and writer leaves."""
        return NONE if self.tangled else common(self._ends().values())

    @property
    def held_by(self) -> list[fx.Node]:
        """The readers and writers that leave least: none leaves a part only of what they do."""
        ends = self._ends()
        return [node for node in ends if not any(other < ends[node] for other in ends.values())]

    def _ends(self) -> dict[fx.Node, Symmetry]:
        ends = [(node, _written(node)) for node in self.writers]
        ends += [(node, _read(node)) for node in self.readers]
        found: dict[fx.Node, Symmetry] = {}
        for node, left in ends:
            found[node] = found.get(node, left) & left
        return found


class _Features(Traversal[Member]):
    """The tensors that hold the features of one space, whole and unmixed."""

    def __init__(self, width: int) -> None:
        super().__init__(FEATURES, Member)
        self.space = Space(width)

    def member(self, node: fx.Node, ids: Tensor) -> Member:
        if bool((ids < 0).any()) or ids.unique().numel() != self.space.width:
            raise LayoutError("it holds only some of the features, or others beside them")
        known = self.space.members.setdefault(node, ids)
        if not torch.equal(*torch.broadcast_tensors(known, ids)):
            self.space.tangled = True
            raise LayoutError("it holds the features in two orders")
        return super().member(node, known)

    def find_sources(self, member: Member) -> None:
        super().find_sources(member)
        self.space.writers += [node for node, _ in member.constants]
        if not member.sources and not member.constants:
            self.space.writers.append(member.node)

    def not_made(self, member: Member, error: LayoutError) -> None:
        self.space.writers.append(member.node)

    def not_read(self, member: Member, user: fx.Node, error: LayoutError) -> None:
        self.space.readers.append(user)

    def find_reader(self, member: Member, user: fx.Node, position: int) -> None:
        if user.op == "output":
            raise LayoutError("it is an output of the network")
        super().find_reader(member, user, position)


def space_of(value: fx.Node, dim: int) -> Space:
    """The space that axis ``dim`` of ``value`` belongs to.

    Tensors that see only part of the features, or see them mixed up with others, count as readers.
    """
    width = shape_of(value)[dim]
    features = _Features(width)
    features.member(value, layout.channel(len(shape_of(value)), dim, width))
    features.follow()
    return features.space


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
    if kind_of(node) is Kind.PRODUCT and any(map(is_static, node.all_input_nodes)):
        return PER_FACTOR
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
