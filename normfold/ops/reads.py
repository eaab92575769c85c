"""What a call reads: its operands, the terms of a sum, the factors of a product, and who reads a value."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from normfold.ir.graph import argument, op_name
from normfold.ops.table import Kind, row_of


def is_tuple(node: fx.Node) -> bool:
    """True for ops such as split, whose users are getitems."""
    return isinstance(node.meta.get("val"), (tuple, list))


def producer(node: fx.Node) -> fx.Node:
    """The op that makes a value: the split itself for a getitem of a split."""
    if node.op == "call_function" and node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source
    return node


def reads_shape_only(user: fx.Node, position: int) -> bool:
    """True if ``user`` looks only at the shape or dtype of its argument at ``position``."""
    return position in row_of(user).lends


def reads_no_size(user: fx.Node, position: int, axis: int) -> bool:
    """True if ``user`` looks only at the type of its argument at ``position``, or at sizes of other axes."""
    row = row_of(user)
    if position not in row.lends or row.measures == "all":
        return False
    if row.measures == "none":
        return True
    source, dim = user.args[position], argument(user, "dim")
    assert isinstance(source, fx.Node)
    return isinstance(dim, int) and dim % source.meta["val"].dim() != axis


def operands(node: fx.Node) -> list[fx.Node]:
    """The activations or parameters whose elements a MOVE, ADD, PRODUCT, MIX... op works on, in order."""
    op = producer(node)
    row, parts = row_of(op), op.args[:1]
    if row.move.joins:
        parts = op.args[0]  # type: ignore[assignment]
        assert isinstance(parts, (list, tuple))
    elif row.kind in (Kind.ADD, Kind.PRODUCT):
        parts = op.args[:2]
    return [part for part in parts if isinstance(part, fx.Node)]


def summands(node: fx.Node) -> list[tuple[fx.Node, float]]:
    """The tensors that an ADD op sums, in order, each with the number that it is multiplied by."""
    alpha = float(argument(node, "alpha", 1))
    factors = (1.0, -alpha if row_of(node).inverts else alpha)
    sides = zip(node.args[:2], factors, strict=True)
    return [(side, factor) for side, factor in sides if isinstance(side, fx.Node)]


@dataclass(frozen=True)
class Product:
    """The tensors that a PRODUCT op multiplies, those that it divides by, and the number that it multiplies by."""

    factors: list[fx.Node]
    divisors: list[fx.Node]
    number: float


def product_of(node: fx.Node) -> Product | None:
    """View of a PRODUCT op of real numbers; None for other ops, a rounded quotient, and one by 0."""
    row = row_of(node)
    if row.kind is not Kind.PRODUCT or node.kwargs.get("rounding_mode") is not None:
        return None
    sides = list(node.args[:2])
    found = Product([], [], 1.0 if len(sides) > 1 else -1.0)
    for position, side in enumerate(sides):
        divides = row.inverts and position == 1
        if isinstance(side, fx.Node):
            (found.divisors if divides else found.factors).append(side)
        elif not isinstance(side, (int, float)) or (divides and side == 0):
            return None
        else:
            found = replace(found, number=found.number * (1 / side if divides else side))
    return found


@dataclass(frozen=True)
class Choice:
    """``chosen`` where ``mask`` is true, ``other`` elsewhere: nodes or numbers."""

    mask: fx.Node
    chosen: Any
    other: Any

    @property
    def tensors(self) -> list[fx.Node]:
        return [part for part in (self.chosen, self.other) if isinstance(part, fx.Node)]

    @property
    def numbers(self) -> list[Any]:
        return [part for part in (self.chosen, self.other) if not isinstance(part, fx.Node)]


def choice_of(node: fx.Node) -> Choice | None:
    """View of an op that chooses elements by a mask."""
    match op_name(node), *node.args:
        case "where", fx.Node() as mask, chosen, other:
            return Choice(mask, chosen, other)
        case "masked_fill", source, fx.Node() as mask, filling:
            return Choice(mask, filling, source)
    return None


@dataclass(frozen=True)
class Use:
    """One read of a value: ``user`` reads it as argument ``position`` (flat index over nested lists)."""

    user: fx.Node
    position: int


def uses(value: fx.Node) -> list[Use]:
    """Every read of ``value``, each occurrence counted; a split is replaced by its getitems."""
    found: list[Use] = []
    for user in value.users:
        positions = [index for index, leaf in enumerate(_flat_arguments(user)) if leaf is value]
        readers = list(user.users) if is_tuple(user) and kind_of_tuple(user) else [user]
        found += [Use(reader, position) for reader in readers for position in positions]
    return found


def kind_of_tuple(node: fx.Node) -> bool:
    """True if a tuple-valued op is in the table (so that its getitems can be looked through)."""
    return row_of(node).kind in (Kind.MOVE, Kind.MONOTONE)


def _flat_arguments(node: fx.Node) -> list[Any]:
    leaves: list[Any] = []

    def visit(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for part in value:
                visit(part)
        else:
            leaves.append(value)

    visit(list(node.args))
    visit(list(node.kwargs.values()))
    return leaves
