"""Edits that put a per-feature affine into a constant, into another channel affine, or into a zero pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir import custom_ops
from normfold.ir.graph import shape_of
from normfold.ops import layout
from normfold.report.reasons import Reason
from normfold.rewrite.absorb import Edit
from normfold.rewrite.flow import Blocked, Coefficient, Flow, along
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


def into_constant(value: fx.Node, flow: Flow, user: fx.Node) -> Edit:
    def edit(rewriter: Rewriter) -> None:
        dtype = value.meta["val"].dtype
        result = value
        for part, op, neutral in (
            (flow.scale, aten.mul.Tensor, 1.0),
            (flow.shift, aten.add.Tensor, 0.0),
        ):
            if part is not None:
                field = part.select(rewriter, part.ids, neutral)
                result = rewriter.expression(op, result, field)
        rewriter.replace_input(user, value, rewriter.cast(result, dtype))
        rewriter.record(f"{value.name}: constant rescaled")

    return edit


def _laid_along(flow: Flow, node: fx.Node) -> tuple[int, Any, Any]:
    """The axis of channels of an affine or border, and a flow's scale and shift laid along it."""
    dim = int(node.args[3])  # type: ignore[arg-type]
    size = shape_of(node)[dim]
    scale, shift = (
        along(part, dim, size, node) if part else None for part in (flow.scale, flow.shift)
    )
    return dim, scale, shift


def into_affine(node: fx.Node, flow: Flow, *, behind: bool) -> Edit:
    """Edit that composes a flow with the channel affine ``node`` (a, b).

    behind:   s (a x + b) + t    a' = a s    b' = b s + t
    in front: a (s x + t) + b    a' = a s    b' = a t + b
    """
    dim, scale, shift = _laid_along(flow, node)

    def edit(rewriter: Rewriter) -> None:
        s, t = _vectors(rewriter, flow, scale, shift)
        a, b = node.args[1], node.args[2]
        if behind:
            b = sum_of(rewriter, _product(rewriter, b, s) if b is not None else None, t)
        else:
            b = sum_of(rewriter, b, _product(rewriter, t, a) if t is not None else None)
        rewriter.set_call(node, node.target, (node.args[0], _product(rewriter, a, s), b, dim))
        rewriter.record(f"{node.name}: composed")

    return edit


def into_border(node: fx.Node, flow: Flow) -> Edit:
    """s pad_v(x) + t = pad_w(s x + t), w = s v + t: edit for the border, as the flow goes on to x."""
    _, scale, shift = _laid_along(flow, node)

    def edit(rewriter: Rewriter) -> None:
        s, t = _vectors(rewriter, flow, scale, shift)
        value = sum_of(rewriter, _product(rewriter, node.args[2], s), t)
        rewriter.set_argument(node, 2, value)
        rewriter.record(f"{node.name}: pads with other values")

    return edit


def _vectors(
    rewriter: Rewriter, flow: Flow, scale: Tensor | None, shift: Tensor | None
) -> tuple[fx.Node | None, fx.Node | None]:
    """The coefficients of a flow for these ids."""
    s = flow.scale.select(rewriter, scale, 1.0) if flow.scale and scale is not None else None
    t = flow.shift.select(rewriter, shift, 0.0) if flow.shift and shift is not None else None
    return s, t


def _product(rewriter: Rewriter, left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return rewriter.expression(aten.mul.Tensor, left, right)


def sum_of(rewriter: Rewriter, left: Any, right: Any) -> Any:
    """The sum of two parameter expressions, of which either may be missing."""
    if left is None or right is None:
        return right if left is None else left
    return rewriter.expression(aten.add.Tensor, left, right)


def pad_with_shift(value: fx.Node, pad: list[int], shift: Coefficient) -> Edit:
    """pad(x) + t = pad_t(x + t): the border gets the shift of its feature instead of zero."""
    axis = layout.axis_of(shift.ids)
    padded = {len(shape_of(value)) - 1 - index // 2 for index, width in enumerate(pad) if width}
    if axis is None or axis in padded or min(pad) < 0:
        raise Blocked(Reason.ZERO_PADDING, value, "the features do not lie along one unpadded axis")
    ids = along(shift, axis, shape_of(value)[axis], value)

    def edit(rewriter: Rewriter) -> None:
        vector = shift.select(rewriter, ids, 0.0)
        source = value.args[0]
        assert isinstance(source, fx.Node)
        filled = rewriter.insert_before(value, custom_ops.channel_pad, source, pad, vector, axis)
        rewriter.replace(value, filled)
        rewriter.record(f"{value.name}: pads with the shift")

    return edit
