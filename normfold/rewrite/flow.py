"""Per-feature coefficients on their way through a graph, as lazily built parameter expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from normfold.ir.graph import Graph
from normfold.ops import layout
from normfold.report.reasons import Reason
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


class Blocked(Exception):
    """A transform cannot pass: the reason, the node that stops it, and a detail in words."""

    def __init__(self, reason: Reason, node: fx.Node, detail: str = "") -> None:
        super().__init__(f"{reason.code} at {node.name} {detail}")
        self.reason, self.node, self.detail = reason, node, detail


class Vector:
    """A ``(K,)`` parameter expression: its float64 value for legality, its node when it is needed."""

    def __init__(self, value: Callable[[], Tensor], build: Callable[[Rewriter], fx.Node]) -> None:
        self._value, self._build = value, build
        self._node: fx.Node | None = None

    @classmethod
    def of(cls, graph: Graph, node: fx.Node) -> Vector:
        """The vector that a node of the graph already computes."""
        return cls(lambda: graph.value(node), lambda rewriter: node)

    @cached_property
    def value(self) -> Tensor:
        return self._value()

    def node(self, rewriter: Rewriter) -> fx.Node:
        if self._node is None:
            self._node = self._build(rewriter)
        return self._node

    def times(self, factor: float) -> Vector:
        if factor == 1:
            return self
        return Vector(
            lambda: self.value * factor,
            lambda rewriter: rewriter.expression(aten.mul.Tensor, self.node(rewriter), factor),
        )

    def reciprocal(self) -> Vector:
        return Vector(
            lambda: self.value.reciprocal(),
            lambda rewriter: rewriter.expression(aten.reciprocal.default, self.node(rewriter)),
        )

    def combine(self, other: Vector, op: Callable[..., Tensor]) -> Vector:
        """Elementwise ``op(self, other)`` for an ATen op on two equally long vectors."""
        return Vector(
            lambda: op(self.value, other.value),
            lambda rewriter: rewriter.expression(op, self.node(rewriter), other.node(rewriter)),
        )


@dataclass(frozen=True)
class Coefficient:
    """One coefficient per feature: ``vector[ids]``, neutral (1 or 0) where ``ids`` is -1."""

    vector: Vector
    ids: Tensor

    @property
    def used(self) -> Tensor:
        """The values that any element carries."""
        ids = self.ids[self.ids >= 0].unique()
        return self.vector.value[ids]

    @property
    def absent(self) -> bool:
        return bool((self.ids < 0).all())

    def same(self, other: Coefficient | None) -> bool:
        return (
            other is not None and other.vector is self.vector and torch.equal(self.ids, other.ids)
        )

    def at(self, ids: Tensor) -> Coefficient | None:
        """The same vector on another layout; None where no element carries it."""
        moved = replace(self, ids=ids)
        return None if moved.absent else moved

    def times(self, factor: float) -> Coefficient:
        return replace(self, vector=self.vector.times(factor))

    def inverse(self) -> Coefficient:
        return replace(self, vector=self.vector.reciprocal())

    def select(self, rewriter: Rewriter, ids: Tensor, neutral: float) -> fx.Node:
        """Expression ``vector[ids]`` for a list of ids, with ``neutral`` where an id is -1."""
        node = self.vector.node(rewriter)
        size = node.meta["val"].shape[0]
        if ids.dim() == 1 and torch.equal(ids, torch.arange(size)):
            return node
        if bool((ids < 0).any()):
            end = rewriter.expression(aten.full.default, [1], neutral, dtype=node.meta["val"].dtype)
            node = rewriter.expression(aten.cat.default, [node, end])
            ids = torch.where(ids < 0, size, ids)
        index = rewriter.constant(ids.reshape(-1).contiguous(), "index")
        node = rewriter.expression(aten.index_select.default, node, 0, index)
        return (
            node
            if ids.dim() == 1
            else rewriter.expression(aten.reshape.default, node, list(ids.shape))
        )


@dataclass(frozen=True)
class Flow:
    """The transform ``x * scale + shift`` of one tensor, either part None if absent."""

    scale: Coefficient | None = None
    shift: Coefficient | None = None

    @property
    def trivial(self) -> bool:
        return self.scale is None and self.shift is None

    def map(self, move: Callable[[Tensor], Tensor]) -> Flow:
        """The same coefficients on layouts changed by ``move``; parts that nothing carries vanish."""
        return Flow(
            None if self.scale is None else self.scale.at(move(self.scale.ids)),
            None if self.shift is None else self.shift.at(move(self.shift.ids)),
        )

    def same(self, other: Flow) -> bool:
        def equal(mine: Coefficient | None, theirs: Coefficient | None) -> bool:
            return mine is theirs or (mine is not None and mine.same(theirs))

        return equal(self.scale, other.scale) and equal(self.shift, other.shift)

    def inverse(self, node: fx.Node) -> Flow:
        """``x / scale - shift / scale``; refused where a scale is too small to divide by."""
        if self.scale is None:
            return Flow(None, None if self.shift is None else self.shift.times(-1.0))
        require_divisible(self.scale, node)
        if self.shift is None:
            return Flow(self.scale.inverse(), None)
        if not torch.equal(self.scale.ids, self.shift.ids):
            raise Blocked(
                Reason.ZERO_PADDING, node, "the shift stops at a border, the scale does not"
            )
        quotient = self.shift.vector.combine(self.scale.vector, aten.div.Tensor).times(-1.0)
        return Flow(self.scale.inverse(), replace(self.shift, vector=quotient))


def require_divisible(scale: Coefficient, node: fx.Node) -> None:
    """Refuse a division by a scale of zero, or one so small that it would cost digits."""
    used = scale.used.abs()
    if bool((used < 1e-3 * used.max().clamp_min(1e-30)).any()):
        raise Blocked(Reason.ZERO_SCALE, node, f"smallest |scale| is {float(used.min()):.2g}")


def require_positive(scale: Coefficient | None, node: fx.Node) -> None:
    """Refuse a scale that is not positive everywhere."""
    if scale is not None and bool((scale.used <= 0).any()):
        count = int((scale.used <= 0).sum())
        raise Blocked(Reason.SIGN, node, f"{count} of {scale.used.numel()} scales are not positive")


def along(coefficient: Coefficient, dim: int, size: int, node: fx.Node) -> Tensor:
    """Ids along one axis of ``node``'s tensor; refused if the features also vary along another axis."""
    ids = layout.along(coefficient.ids, dim, size)
    if ids is None:
        raise Blocked(Reason.AXIS_MISMATCH, node, "the features lie along another axis")
    return ids
