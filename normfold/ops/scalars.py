"""Sums and products of a tensor and one parameter that is the same everywhere: SkipInit, Fixup, a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ops.reads import product_of, summands
from normfold.ops.table import Kind, row_of


@dataclass(frozen=True)
class Scalar:
    """``data * number``, ``data / number`` or ``data + factor * number``, with a parameter of one element."""

    data: fx.Node
    number: fx.Node
    how: Literal["times", "over", "plus"]
    factor: float = 1.0


def scalar_of(node: fx.Node) -> Scalar | None:
    """View of an op that does the same to every element by a parameter; None for other ops."""
    found = None
    if not isinstance(node.meta.get("val"), Tensor):  # sums of sizes
        return None
    match row_of(node).kind:
        case Kind.PRODUCT:
            found = _product(node)
        case Kind.ADD:
            found = _sum(node)
    if found is None or is_static(found.data) or not is_static(found.number):
        return None
    mine = node.meta["val"]
    data, number = (part.meta.get("val") for part in (found.data, found.number))
    if not isinstance(data, Tensor) or not isinstance(number, Tensor):
        return None
    one = number.numel() == 1 and number.is_floating_point()
    same = data.dtype == mine.dtype and shape_of(found.data) == shape_of(node)
    return found if one and same and mine.dim() else None


def _product(node: fx.Node) -> Scalar | None:
    found = product_of(node)
    if found is None or found.number != 1:
        return None
    if len(found.divisors) == 1 and len(found.factors) == 1:
        return Scalar(found.factors[0], found.divisors[0], "over")
    if found.divisors or len(found.factors) != 2:
        return None
    data, number = sorted(found.factors, key=is_static)
    return Scalar(data, number, "times")


def _sum(node: fx.Node) -> Scalar | None:
    sides = sorted(summands(node), key=lambda side: is_static(side[0]))
    if len(sides) != 2 or sides[0][1] != 1:
        return None
    (data, _), (number, factor) = sides
    return Scalar(data, number, "plus", factor)
