"""Edits that put a per-feature affine into a constant, into another channel affine, or into a zero pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from normfold.graph import Site, custom_ops, layout
from normfold.graph.graph import shape_of
from normfold.rewrite.absorb import Edit
from normfold.rewrite.flow import Blocked, Coefficient, Flow, along
from normfold.rewrite.reasons import Reason
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


def after_affine(node: fx.Node, flow: Flow, sites: tuple[Site, ...]) -> Edit:
    """y = (a x + b) s + t: a' = a s, b' = b s + t."""
    dim = int(node.args[3])  # type: ignore[arg-type]
    size = shape_of(node)[dim]
    scale = along(flow.scale, dim, size, node) if flow.scale else None
    shift = along(flow.shift, dim, size, node) if flow.shift else None

    def edit(rewriter: Rewriter) -> None:
        a, b = node.args[1], node.args[2]
        if flow.scale is not None and scale is not None:
            s = flow.scale.select(rewriter, scale, 1.0)
            a = s if a is None else rewriter.expression(aten.mul.Tensor, a, s)
            b = None if b is None else rewriter.expression(aten.mul.Tensor, b, s)
        if flow.shift is not None and shift is not None:
            t = flow.shift.select(rewriter, shift, 0.0)
            b = t if b is None else rewriter.expression(aten.add.Tensor, b, t)
        _compose(node, a, b, sites, rewriter)

    return edit


def before_affine(node: fx.Node, flow: Flow, sites: tuple[Site, ...]) -> Edit:
    """y = a (s x + t) + b: a' = a s, b' = b + a t."""
    dim = int(node.args[3])  # type: ignore[arg-type]
    size = shape_of(node)[dim]
    scale = along(flow.scale, dim, size, node) if flow.scale else None
    shift = along(flow.shift, dim, size, node) if flow.shift else None

    def edit(rewriter: Rewriter) -> None:
        a, b = node.args[1], node.args[2]
        if flow.shift is not None and shift is not None:
            t = flow.shift.select(rewriter, shift, 0.0)
            t = t if a is None else rewriter.expression(aten.mul.Tensor, a, t)
            b = t if b is None else rewriter.expression(aten.add.Tensor, b, t)
        if flow.scale is not None and scale is not None:
            s = flow.scale.select(rewriter, scale, 1.0)
            a = s if a is None else rewriter.expression(aten.mul.Tensor, a, s)
        _compose(node, a, b, sites, rewriter)

    return edit


def _compose(node: fx.Node, a: Any, b: Any, sites: tuple[Site, ...], rewriter: Rewriter) -> None:
    node.args = (node.args[0], a, b, node.args[3])
    own = node.meta.get("normfold_sites", ())
    node.meta["normfold_sites"] = (*own, *(site for site in sites if site not in own))
    rewriter.record(f"{node.name}: composed")


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
