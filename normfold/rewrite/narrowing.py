"""How the features of one axis pass through an op when one of them is left out: readers, writers, movements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ops.linear import linear_of
from normfold.ops.reads import Use, reads_no_size
from normfold.ops.table import Kind, kind_of, row_of
from normfold.spaces.writers import writer_of


@dataclass(frozen=True)
class Reader:
    """A linear op that reads features of ``data`` along ``dim``: ``axis`` of the weight at ``position``."""

    data: fx.Node
    dim: int
    position: int
    axis: int


def reader_of(node: fx.Node) -> Reader | None:
    linear = linear_of(node) if node.op == "call_function" else None
    if linear is not None:
        if linear.in_dim is None or linear.in_axis is None or linear.groups != 1:
            return None
        return Reader(linear.data, linear.in_dim, linear.weight_position, linear.in_axis)
    stack = writer_of(node)  # a product with one matrix per expert
    if stack is None:
        return None
    data, rank = node.args[0], len(shape_of(stack.weight))
    assert isinstance(data, fx.Node)
    return Reader(data, len(shape_of(data)) - 1, stack.weight_position, rank - 2)


def weight_of(op: fx.Node) -> fx.Node | None:
    """The weight of a linear op, or None."""
    writer = writer_of(op)
    return writer.weight if writer is not None else None


def readers_of_store(weight: fx.Node | None) -> set[fx.Node]:
    """Ops on activations that read the stored tensor of ``weight``, as it is or transposed."""
    assert weight is not None
    while kind_of(weight) is Kind.MOVE and len(weight.all_input_nodes) == 1:
        weight = weight.all_input_nodes[0]
    found, stack = set(), [weight]
    while stack:
        for user in stack.pop().users:
            if not is_static(user):
                found.add(user)
            elif kind_of(user) is Kind.MOVE and len(user.all_input_nodes) == 1:
                stack.append(user)
    return found


def sees_no_features(use: Use, axis: int) -> bool:
    """True if a reader looks only at the dtype, or at the size of another axis."""
    return reads_no_size(use.user, use.position, axis)


def narrow_sizes(node: fx.Node, axis: int, width: int, kept: int) -> list[Any] | None:
    """The sizes that a reshape or expand is given, with ``kept`` features instead of ``width``."""
    at = row_of(node).move.sizes
    if at is None:
        return None
    sizes: list[Any] = list(node.args[at])  # type: ignore[arg-type]
    if sizes[axis] == width:
        sizes[axis] = kept
    return sizes
