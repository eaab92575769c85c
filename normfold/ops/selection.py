"""A part of a cat that lies within one operand is a part of that operand: the cat is not needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from normfold.ir.graph import argument, is_symbolic, op_name
from normfold.ops.reads import operands

aten = torch.ops.aten
_END = 2**62  # what `x[1:]` is captured as


@dataclass(frozen=True)
class Selection:
    """The part ``start:end`` of ``operand`` along ``dim``; ``end`` is None for all that follows."""

    operand: fx.Node
    dim: int
    start: int
    end: int | None


def selection_of(node: fx.Node) -> Selection | None:
    """The operand of a cat that a slice or select reads, if it reads no other."""
    if op_name(node) not in ("slice", "select") or not isinstance(node.args[0], fx.Node):
        return None
    cat = node.args[0]
    while takes_all(cat):
        (cat,) = operands(cat)
    if op_name(cat) not in ("cat", "concat", "concatenate"):
        return None
    rank = cat.meta["val"].dim()
    dim = int(argument(node, "dim", 0)) % rank
    if int(argument(cat, "dim", 0)) % rank != dim:
        return None
    bounds = _bounds(node)
    found = None if bounds is None else _within(operands(cat), dim, *bounds)
    if found is None or found.operand.meta["val"].dtype != node.meta["val"].dtype:
        return None  # a cat widens what is narrower than the rest
    return found


def takes_all(node: fx.Node) -> bool:
    """True for `x[:]`."""
    return op_name(node) == "slice" and _bounds(node) == (0, None)


def _bounds(node: fx.Node) -> tuple[int, int | None] | None:
    """(start, end) of what is read, from the front; None where they depend on run-time sizes."""
    if op_name(node) == "select":
        index = argument(node, "index")
        return (index, index + 1) if isinstance(index, int) and index >= 0 else None
    start, end = argument(node, "start") or 0, argument(node, "end")
    if argument(node, "step", 1) != 1 or not isinstance(start, int) or start < 0:
        return None
    if end is None or (isinstance(end, int) and end >= _END):
        return start, None
    return (start, end) if isinstance(end, int) and end >= 0 else None


def _within(parts: list[fx.Node], dim: int, start: int, end: int | None) -> Selection | None:
    offset = 0
    for index, part in enumerate(parts):
        size: Any = part.meta["val"].shape[dim]
        last = index == len(parts) - 1
        behind = None if is_symbolic(size) else offset + int(size)
        if start >= offset and (last if behind is None else start < behind):
            reaches = last or (end is not None and behind is not None and end <= behind)
            return Selection(part, dim, start - offset, end and end - offset) if reaches else None
        if behind is None:
            return None
        offset = behind
    return None
