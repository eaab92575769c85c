"""What a tensor is made of, and what is made of it, by ops that a transform of the features commutes with.

A linear transform of the features, the same at every position, commutes with movements that keep the features
together, with sums, with products with factors that are the same for every feature, with choices by masks that
are, and with all that is linear over other axes: means over tokens, attention's values. What goes through such an
op is a *carrier*: what is known of each element of a tensor.

FEATURES   which feature it is (`ops.layout`)                      any matrix
GROUPS     which elements it shares a mean with (`ops.groups`)     the projection that takes the means away
IN_ORDER   the same, where features stay in their order            a change to a basis of another width

An affine of each feature goes further, through ReLU where it is positive and through gates, and what it is behind
an op depends on its values. It may go to either side of a sum, and comes back where one side turns out to be
closed. So it has a traversal of its own (`rewrite.transport`), over the same layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ops import groups as grouping
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.mixing import mixed, through_mix
from normfold.ops.reads import choice_of, operands, producer, product_of
from normfold.ops.table import Kind, kind_of, row_of
from normfold.spaces.writers import writer_of

Part = tuple[fx.Node, Tensor]


@dataclass(frozen=True)
class Carrier:
    """How what is known of the elements of a tensor moves.

    Attributes:
        pull: of the operands of a movement, for that of its result; those that none of it concerns are left out.
        push: of the result of a movement, for that of one operand; None where none of it gets there.
        key: equal for what says the same.
    """

    pull: Callable[[fx.Node, Tensor], list[Part]]
    push: Callable[[fx.Node, fx.Node, Tensor], Tensor | None]
    key: Callable[[Tensor], Hashable]


def made_of(node: fx.Node, ids: Tensor, carrier: Carrier) -> list[Part]:
    """What ``node`` is made of by an op that lets the carrier through; nothing if it is not such an op.

    Raises:
        LayoutError: the op would, but some operand does not hold the features as a whole.
    """
    match Kind.STOP if is_static(node) else kind_of(node):
        case Kind.MOVE:
            return carrier.pull(node, ids)
        case Kind.ADD if len(operands(node)) == 2:
            return [(part, grouping.for_operand(ids, part)) for part in operands(node)]
        case Kind.PRODUCT if (factor := _factor(node, ids)) is not None:
            return [(factor, grouping.for_operand(ids, factor))]
        case Kind.MIX:
            return [(operands(node)[0], through_mix(node, ids))]
        case Kind.DOT if (value := _value_of(node, ids)) is not None:
            return [(value, layout.align(ids, len(shape_of(value))))]
        case Kind.AFFINE:
            return _affine_parts(node, ids)
        case Kind.STOP:
            return [(part, grouping.for_operand(ids, part)) for part in _choices(node, ids)]
    return []


def made_into(user: fx.Node, node: fx.Node, ids: Tensor, carrier: Carrier) -> Tensor | None:
    """What the carrier is of what ``user`` makes of ``node``; None where nothing of it gets there.

    Raises:
        LayoutError: the user reads the features in another way.
    """
    kind = kind_of(user)
    if kind is Kind.MOVE:
        return carrier.push(user, node, ids)
    if kind is Kind.MIX:
        return mixed(user, ids)
    if isinstance(user.meta.get("val"), Tensor):
        wide = layout.align(ids, len(shape_of(user)))
        carried = (
            kind is Kind.ADD
            or (kind is Kind.PRODUCT and _factor(user, wide) is node)
            or (kind is Kind.DOT and _value_of(user, wide) is node)
            or (kind is Kind.AFFINE and user.args[1] is None)
            or (kind is Kind.STOP and node in _choices(user, wide))
        )
        if carried:
            return wide
    raise LayoutError(f"`{op_name(user)}` reads the features as they are")


# -- movements --------------------------------------------------------------------------------------


def _pull_groups(node: fx.Node, groups: Tensor) -> list[Part]:
    part = grouping.pull_part(node, groups)
    if part is not None and _reaches_writer(operands(node)[0], part):
        return [(operands(node)[0], part)]
    return grouping.pull(node, groups)


def _reaches_writer(node: fx.Node, groups: Tensor) -> bool:
    """True if only movements lie between the tensor and a linear op that can be centred in these groups."""
    try:
        while (writer := writer_of(node)) is None:
            if kind_of(node) is not Kind.MOVE or len(operands(node)) != 1:
                return False
            ((node, groups),) = grouping.pull(node, groups)
    except LayoutError:
        return False
    return writer.absorbs(groups)


def _push_features(user: fx.Node, node: fx.Node, ids: Tensor) -> Tensor:
    joined = len(operands(user)) > 1 and len(shape_of(user)) == ids.dim()
    if joined and (beside := layout.beside(user, ids)) is not None:
        return beside  # joined along another axis: the other parts are of the same space
    return layout.push(user, node, ids)


def _key_of_features(ids: Tensor) -> Hashable:
    return tuple(ids.shape), ids.contiguous().numpy().tobytes()


def one_axis(groups: Tensor) -> bool:
    """True if all features lie along one axis and share one mean."""
    return grouping.is_simple(groups) and len(grouping.axes(groups)) == 1


def _pull_in_order(node: fx.Node, groups: Tensor) -> list[Part]:
    parts = grouping.pull(node, groups)
    (axis,) = grouping.axes(groups)
    return parts if all(one_axis(ids) and _keeps(node, axis, ids) for _, ids in parts) else []


def _keeps(node: fx.Node, axis: int, inner: Tensor) -> bool:
    """True if a movement needs no change but of its size at ``axis`` to move fewer features likewise."""
    op, (source,) = producer(node), grouping.axes(inner)
    move = row_of(op).move
    if move.sizeless:
        return True
    if move.sizes is not None:
        size: Any = op.args[move.sizes][axis]  # type: ignore[index]
        return isinstance(size, int) and size in (-1, inner.shape[source])
    kept = layout.kept_axes(op, inner.dim())
    return kept is not None and source in kept


GROUPS = Carrier(_pull_groups, grouping.push, grouping.key)
IN_ORDER = Carrier(_pull_in_order, grouping.push, grouping.key)
FEATURES = Carrier(layout.pull, _push_features, _key_of_features)


# -- what lets a carrier through --------------------------------------------------------------------


def _varies(factor: fx.Node, ids: Tensor) -> bool:
    """True if a tensor differs from feature to feature."""
    shape = shape_of(factor)
    shape = (1,) * (ids.dim() - len(shape)) + shape
    return any(shape[dim] != 1 for dim in grouping.axes(ids))


def _factor(node: fx.Node, ids: Tensor) -> fx.Node | None:
    """The factor of a product that holds the features, if all others are the same for every feature."""
    found = product_of(node)
    sides = [*found.factors, *found.divisors] if found is not None else []
    holders = [side for side in sides if _varies(side, ids)]
    if found is None or len(holders) != 1 or sides.count(holders[0]) != 1:
        return None
    return holders[0] if holders[0] in found.factors else None


def _value_of(node: fx.Node, ids: Tensor) -> fx.Node | None:
    """The value operand of a product of activations, if the features lie along its last axis."""
    position = 2 if row_of(node).attention else 1
    value = node.args[position]
    if grouping.axes(ids) != [ids.dim() - 1] or not isinstance(value, fx.Node):
        return None
    return None if any(value is other for other in node.args[:position]) else value


def _affine_parts(node: fx.Node, ids: Tensor) -> list[Part]:
    x, scale, shift, dim = node.args
    assert isinstance(x, fx.Node)
    if scale is not None or grouping.axes(ids) != [dim]:
        return []
    return [(x, ids), *([(shift, ids.reshape(-1))] if isinstance(shift, fx.Node) else [])]


def _choices(node: fx.Node, ids: Tensor) -> list[fx.Node]:
    """The tensors that a mask chooses from, if it is the same for every feature: mask tokens, padded tokens."""
    found = choice_of(node)
    if found is None or any(number != 0 for number in found.numbers):
        return []
    return [] if _varies(found.mask, ids) or found.mask in found.tensors else found.tensors
