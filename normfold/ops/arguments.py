"""What rows of the op table read off the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from torch import fx

from normfold.ir.graph import argument
from normfold.ir.intervals import EVERYTHING, Interval

# of an operand of that rank: the axes that a movement leaves alone, each with its place in the result
Kept = Callable[[fx.Node, int], dict[int, int] | None]


def limits(low: str, high: str) -> Callable[[fx.Node], Interval]:
    """The range that two arguments give, where they are numbers; an argument that is not there gives no limit."""

    def read(node: fx.Node) -> Interval:
        ends = [argument(node, name) if name else None for name in (low, high)]
        if not all(isinstance(end, (int, float, type(None))) for end in ends):
            return EVERYTHING
        least, most = ends
        return Interval(
            -inf if least is None else float(least), inf if most is None else float(most)
        )

    return read


def along(name: str) -> Kept:
    """All axes but those that an argument names."""

    def kept(node: fx.Node, rank: int) -> dict[int, int] | None:
        moved = _axes(argument(node, name, 0), rank)
        return {axis: axis for axis in range(rank) if axis not in moved} if moved else None

    return kept


def removed(node: fx.Node, rank: int) -> dict[int, int]:
    """All axes but ``dim``, which is not in the result."""
    (gone,) = _axes(argument(node, "dim", 0), rank)
    return {axis: axis - (axis > gone) for axis in range(rank) if axis != gone}


def stacked(node: fx.Node, rank: int) -> dict[int, int]:
    """All axes, beside the new axis ``dim``."""
    (new,) = _axes(argument(node, "dim", 0), rank + 1)
    return {axis: axis + (axis >= new) for axis in range(rank)}


def indexed(node: fx.Node, rank: int) -> dict[int, int]:
    """The axes behind those that are indexed."""
    behind = node.meta["val"].dim() - rank
    return {axis: axis + behind for axis in range(len(argument(node, "indices")), rank)}


def padded(node: fx.Node, rank: int) -> dict[int, int]:
    """The axes that ``pad``, whose first two widths are those of the last axis, makes no larger."""
    widths = argument(node, "pad")
    moved = {rank - 1 - index // 2 for index, width in enumerate(widths) if width != 0}
    return {axis: axis for axis in range(rank) if axis not in moved}


def _axes(value: Any, rank: int) -> set[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return {int(axis) % rank for axis in values}
