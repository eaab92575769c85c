"""How the features of one axis pass through an op when one of them is left out: readers, writers, movements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ops import groups as grouping
from normfold.ops import layout
from normfold.ops.linear import linear_of
from normfold.ops.mixing import through_mix
from normfold.ops.reads import Use, operands, producer, reads_no_size
from normfold.ops.table import Kind, kind_of, row_of
from normfold.rewrite.writers import writer_of


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


def one_axis(groups: Tensor) -> bool:
    return grouping.is_simple(groups) and len(grouping.axes(groups)) == 1


def sees_no_features(use: Use, axis: int) -> bool:
    """True if a reader looks only at the dtype, or at the size of another axis."""
    return reads_no_size(use.user, use.position, axis)


def parts_of(node: fx.Node, groups: Tensor) -> list[tuple[fx.Node, Tensor]]:
    """What ``node`` is made of by an op that keeps features apart and in order; nothing for other ops."""
    (axis,) = grouping.axes(groups)
    match kind_of(node):
        case Kind.MOVE:
            parts = grouping.pull(node, groups)
            kept = all(one_axis(inner) and _keeps(node, axis, inner) for _, inner in parts)
            return parts if kept else []
        case Kind.ADD if len(operands(node)) == 2:
            return [(part, grouping.for_operand(groups, part)) for part in operands(node)]
        case Kind.PRODUCT:
            # the other factors are the same for every feature: else it would not be centred
            wide = [part for part in operands(node) if _width(part, axis, groups.dim()) > 1]
            return [
                (part, grouping.for_operand(groups, part)) for part in wide[:1] if len(wide) == 1
            ]
        case Kind.MIX:
            return [(operands(node)[0], through_mix(node, groups))]
        case Kind.AFFINE if node.args[1] is None and node.args[3] == axis:
            x, _, shift, _ = node.args
            return [(x, groups), (shift, groups.reshape(-1))]  # type: ignore[list-item]
    return []


def _width(node: fx.Node, axis: int, rank: int) -> int:
    shape = shape_of(node)
    at = axis - rank + len(shape)
    return shape[at] if at >= 0 else 1


def _keeps(node: fx.Node, axis: int, inner: Tensor) -> bool:
    """True if a movement needs no change but of its size at ``axis`` to move d - 1 features likewise."""
    op, (source,) = producer(node), grouping.axes(inner)
    move = row_of(op).move
    if move.sizeless:
        return True
    if move.sizes is not None:
        size: Any = op.args[move.sizes][axis]  # type: ignore[index]
        return isinstance(size, int) and size in (-1, inner.shape[source])
    kept = layout.kept_axes(op, inner.dim())
    return kept is not None and source in kept


def narrow_sizes(node: fx.Node, axis: int, width: int, kept: int) -> list[Any] | None:
    """The sizes that a reshape or expand is given, with ``kept`` features instead of ``width``."""
    at = row_of(node).move.sizes
    if at is None:
        return None
    sizes: list[Any] = list(node.args[at])  # type: ignore[arg-type]
    if sizes[axis] == width:
        sizes[axis] = kept
    return sizes
