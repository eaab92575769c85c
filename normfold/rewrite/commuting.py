"""Which ops commute with centring: what a tensor is made of, and what is made of it, with their groups.

P is linear, keeps apart what is not of one group, and gives 0 for what is the same for all features. So it
commutes with movements of whole groups, sums, products with factors that are the same for every feature,
choices by masks that are, and everything linear over other axes (means over tokens, attention's values).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ops import groups as grouping
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.mixing import mixed, through_mix
from normfold.ops.reads import choice_of, operands, product_of
from normfold.ops.table import Kind, kind_of, row_of
from normfold.rewrite.writers import writer_of

Part = tuple[fx.Node, Tensor]


def made_of(node: fx.Node, groups: Tensor) -> Iterator[Part]:
    """What ``node`` is made of by an op that commutes with centring; nothing if there is no such op.

    Raises:
        LayoutError: the op would, but some operand does not hold whole groups.
    """
    match Kind.STOP if is_static(node) else kind_of(node):
        case Kind.MOVE:
            part = grouping.pull_part(node, groups)
            if part is not None and _reaches_writer(operands(node)[0], part):
                yield operands(node)[0], part
            else:
                yield from grouping.pull(node, groups)
        case Kind.ADD if len(operands(node)) == 2:
            for operand in operands(node):
                yield operand, grouping.for_operand(groups, operand)
        case Kind.PRODUCT if (carrier := _carrier(node, groups)) is not None:
            yield carrier, grouping.for_operand(groups, carrier)
        case Kind.MIX:
            yield operands(node)[0], through_mix(node, groups)
        case Kind.DOT if (value := _value_of(node, groups)) is not None:
            yield value, layout.align(groups, len(shape_of(value)))
        case Kind.AFFINE:
            yield from _affine_parts(node, groups)
        case Kind.STOP:
            for choice in _choices(node, groups):
                yield choice, grouping.for_operand(groups, choice)


def made_into(user: fx.Node, node: fx.Node, groups: Tensor) -> Tensor | None:
    """Groups of what ``user`` makes of ``node``; None where no centred element reaches it.

    Raises:
        LayoutError: the user would see that the mean is gone.
    """
    kind = kind_of(user)
    if kind is Kind.MOVE:
        return grouping.push(user, node, groups)
    if kind is Kind.MIX:
        return mixed(user, groups)
    if isinstance(user.meta.get("val"), Tensor):
        wide = layout.align(groups, len(shape_of(user)))
        carried = (
            kind is Kind.ADD
            or (kind is Kind.PRODUCT and _carrier(user, wide) is node)
            or (kind is Kind.DOT and _value_of(user, wide) is node)
            or (kind is Kind.AFFINE and user.args[1] is None)
            or (kind is Kind.STOP and node in _choices(user, wide))
        )
        if carried:
            return wide
    raise LayoutError(f"`{op_name(user)}` reads the features as they are")


def _varies(factor: fx.Node, groups: Tensor) -> bool:
    """True if a tensor differs from feature to feature."""
    shape = shape_of(factor)
    shape = (1,) * (groups.dim() - len(shape)) + shape
    return any(shape[dim] != 1 for dim in grouping.axes(groups))


def _carrier(node: fx.Node, groups: Tensor) -> fx.Node | None:
    """The factor of a product that holds the features, if all others are the same for every feature."""
    found = product_of(node)
    sides = [*found.factors, *found.divisors] if found is not None else []
    holders = [side for side in sides if _varies(side, groups)]
    if found is None or len(holders) != 1 or sides.count(holders[0]) != 1:
        return None
    return holders[0] if holders[0] in found.factors else None


def _value_of(node: fx.Node, groups: Tensor) -> fx.Node | None:
    """The value operand of a product of activations, if the groups lie along its last axis."""
    position = 2 if row_of(node).attention else 1
    value = node.args[position]
    if grouping.axes(groups) != [groups.dim() - 1] or not isinstance(value, fx.Node):
        return None
    return None if any(value is other for other in node.args[:position]) else value


def _affine_parts(node: fx.Node, groups: Tensor) -> Iterator[Part]:
    x, scale, shift, dim = node.args
    assert isinstance(x, fx.Node) and isinstance(dim, int)
    if scale is None and grouping.axes(groups) == [dim]:
        yield x, groups
        if isinstance(shift, fx.Node):
            yield shift, groups.reshape(-1)


def _choices(node: fx.Node, groups: Tensor) -> list[fx.Node]:
    """The tensors that a mask chooses from, if it is the same for every feature: mask tokens, padded tokens."""
    found = choice_of(node)
    if found is None or any(number != 0 for number in found.numbers):
        return []
    return [] if _varies(found.mask, groups) or found.mask in found.tensors else found.tensors


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
