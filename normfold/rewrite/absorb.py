"""How a linear op takes a per-feature affine into its weight and bias.

With W the weight (groups split off), s and t per output feature, a and b per input feature:

    s * (W x + c) + t            W' = s W            c' = s c + t
    W (a x + b) + c              W' = W diag(a)      c' = c + W b

One rule for linear, addmm, matmul, embedding and every convolution, grouped, depthwise and transposed. Where
zeros are read beyond the border, ``W b`` differs per position: it becomes a bias map (the same op run on the
constant b), or the input is padded with ``-b / a`` instead of 0, which maps to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir import custom_ops, facts
from normfold.ir.graph import argument, argument_index, is_symbolic, op_name, shape_of
from normfold.ir.statistics import statistics_of
from normfold.ops.linear import Linear, linear_of, pads_with_zeros
from normfold.ops.table import row_of
from normfold.report.reasons import Reason
from normfold.rewrite.flow import Blocked, Coefficient, Flow, along, require_divisible
from normfold.rewrite.rewriter import Rewriter

Edit = Callable[[Rewriter], None]
aten = torch.ops.aten


def into_output(linear: Linear, flow: Flow) -> Edit:
    """Edit that makes ``linear`` produce ``y * scale + shift`` instead of ``y``."""
    node, size = linear.node, linear.out_features
    scale = along(flow.scale, linear.out_dim, size, node) if flow.scale else None
    shift = along(flow.shift, linear.out_dim, size, node) if flow.shift else None
    if shift is not None and not linear.takes_bias:
        raise Blocked(Reason.NO_BIAS, node)

    def edit(rewriter: Rewriter) -> None:
        linear = as_it_is(node)
        s = flow.scale.select(rewriter, scale, 1.0) if flow.scale and scale is not None else None
        t = flow.shift.select(rewriter, shift, 0.0) if flow.shift and shift is not None else None
        weight = linear_weight(linear)
        if s is not None:
            _set_weight(rewriter, linear, _times(rewriter, linear, weight, s, output=True))
        if row_of(node).lookup:
            if t is not None:
                weight = linear_weight(linear)
                _set_weight(rewriter, linear, rewriter.expression(aten.add.Tensor, weight, t))
        else:
            bias = linear.bias
            if bias is not None and s is not None:
                bias = rewriter.expression(aten.mul.Tensor, bias, s)
            if t is not None:
                bias = t if bias is None else rewriter.expression(aten.add.Tensor, bias, t)
            set_bias(rewriter, linear, bias)
        rewriter.record(f"{node.name}: output {_words(flow)}")

    return edit


def into_input(linear: Linear, flow: Flow, padding: str) -> Edit:
    """Edit that makes ``linear`` compute ``f(x * scale + shift)`` from ``x``.

    ``padding`` says what happens to a shift at zero padding: ``cheapest``, ``map``, ``pad`` or ``scale-only``
    (which refuses the shift).
    """
    node = linear.node
    if linear.in_dim is None or linear.in_axis is None:
        raise Blocked(Reason.AXIS_MISMATCH, node)
    size = shape_of(linear.data)[linear.in_dim]
    scale = along(flow.scale, linear.in_dim, size, node) if flow.scale else None
    how = "none" if flow.shift is None else _shift_way(linear, flow, flow.shift, padding)
    shift = (
        None
        if how in ("none", "map") or flow.shift is None
        else along(flow.shift, linear.in_dim, size, node)
    )
    if how in ("bias", "pad") and not linear.takes_bias:
        raise Blocked(Reason.NO_BIAS, node)

    def edit(rewriter: Rewriter) -> None:
        linear = as_it_is(node)
        weight, bias = linear_weight(linear), None
        same = how != "map"  # which is added behind it: it computes what it did
        if flow.shift is not None and how == "map":
            _add_map(rewriter, linear, flow.shift, weight)
        elif flow.shift is not None and shift is not None:
            t = flow.shift.select(rewriter, shift, 0.0)
            if how == "pad":
                _pad_input(rewriter, linear, flow, shift)
            bias = response(rewriter, linear, weight, t)
            if linear.bias is not None:
                bias = rewriter.expression(aten.add.Tensor, linear.bias, bias)
        if flow.scale is not None and scale is not None:
            s = flow.scale.select(rewriter, scale, 1.0)
            _set_weight(rewriter, linear, _times(rewriter, linear, weight, s, output=False), same)
        # last: a matmul becomes a linear, whose weight lies the other way
        set_bias(rewriter, linear, bias, same)
        rewriter.record(
            f"{node.name}: input {_words(flow)}" + (f" ({how})" if how in ("map", "pad") else "")
        )

    return edit


def restated(node: fx.Node, flow: Flow, back: bool = False) -> list[Edit]:
    """Edit that keeps what is known of a tensor true which now holds ``flow(x)`` (``back``: is read so)."""
    found = statistics_of(node)

    def numbers(part: Coefficient | None, neutral: float) -> Tensor | None:
        if part is None:
            return None
        assert found is not None
        ids = along(part, found.dim, shape_of(node)[found.dim], node)
        return part.vector.value[ids.clamp_min(0)].masked_fill(ids < 0, neutral)

    def edit(rewriter: Rewriter) -> None:
        rewriter.changed(node)
        if found is None:
            return
        try:
            scale, shift = numbers(flow.scale, 1.0), numbers(flow.shift, 0.0)
        except Blocked:  # it varies along another axis too
            return
        facts.put(node, found.before(scale, shift) if back else found.moved(scale, shift))

    return [edit]


def as_it_is(node: fx.Node) -> Linear:
    """The view at the time of the edit: an earlier one may have turned a matmul into a linear."""
    linear = linear_of(node)
    assert linear is not None
    return linear


def linear_weight(linear: Linear) -> fx.Node:
    """The weight that the op reads now (an earlier edit may have changed it)."""
    weight = linear.node.args[linear.weight_position]
    assert isinstance(weight, fx.Node)
    return weight


def _words(flow: Flow) -> str:
    return " and ".join(
        word for word, part in (("scale", flow.scale), ("shift", flow.shift)) if part
    )


def _set_weight(rewriter: Rewriter, linear: Linear, weight: fx.Node, same: bool = False) -> None:
    weight = rewriter.cast(weight, linear.weight.meta["val"].dtype)
    rewriter.set_argument(linear.node, linear.weight_position, weight, same)


def set_bias(rewriter: Rewriter, linear: Linear, bias: fx.Node | None, same: bool = False) -> None:
    """Give a linear op a bias; ``same``: what it computes stays what it was."""
    if bias is None:
        return
    dtype = (linear.bias if linear.bias is not None else linear.weight).meta["val"].dtype
    bias = rewriter.cast(bias, dtype)
    if linear.bias_position is not None:
        rewriter.set_argument(linear.node, linear.bias_position, bias, same)
    else:
        weight = rewriter.expression(aten.t.default, linear_weight(linear))
        rewriter.set_call(linear.node, aten.linear.default, (linear.data, weight, bias), same)


def _grouped(rewriter: Rewriter, linear: Linear, weight: fx.Node) -> tuple[fx.Node, list[int]]:
    """The weight as ``(groups, first/groups, second, *kernel)``, and its own shape."""
    shape = [int(size) for size in weight.meta["val"].shape]
    split = [linear.groups, shape[0] // linear.groups, *shape[1:]]
    return rewriter.expression(aten.reshape.default, weight, split), shape


def _times(
    rewriter: Rewriter, linear: Linear, weight: fx.Node, vector: fx.Node, output: bool
) -> fx.Node:
    """Weight times one coefficient per output (or input) feature."""
    axis = linear.out_axis if output else linear.in_axis
    rank = len(weight.meta["val"].shape)
    if axis == 0:  # axis 0 runs over all features, whatever the groups
        vector = rewriter.expression(aten.reshape.default, vector, [-1] + [1] * (rank - 1))
        return rewriter.expression(aten.mul.Tensor, weight, vector)
    grouped, shape = _grouped(rewriter, linear, weight)
    vector = rewriter.expression(
        aten.reshape.default, vector, [linear.groups, 1, shape[1]] + [1] * (rank - 2)
    )
    product = rewriter.expression(aten.mul.Tensor, grouped, vector)
    return rewriter.expression(aten.reshape.default, product, shape)


def response(rewriter: Rewriter, linear: Linear, weight: fx.Node, vector: fx.Node) -> fx.Node:
    """``W b``: the response of the op to an input that is the same at every position."""
    if linear.kernel:
        axes = list(range(2, 2 + linear.kernel))
        weight = rewriter.expression(aten.sum.dim_IntList, weight, axes)
    # a product, unlike a sum, wants one dtype: that of a float32 norm in front of a half-precision layer
    dtype = torch.promote_types(weight.meta["val"].dtype, vector.meta["val"].dtype)
    weight, vector = rewriter.cast(weight, dtype), rewriter.cast(vector, dtype)
    rows, columns = (int(size) for size in weight.meta["val"].shape)
    if not linear.kernel:
        if linear.in_axis == 0:
            weight = rewriter.expression(aten.t.default, weight)
        return rewriter.expression(aten.mv.default, weight, vector)
    groups = linear.groups
    weight = rewriter.expression(aten.reshape.default, weight, [groups, rows // groups, columns])
    vector = rewriter.expression(aten.reshape.default, vector, [groups, columns, 1])
    product = rewriter.expression(aten.bmm.default, weight, vector)
    return rewriter.expression(aten.reshape.default, product, [rows])


def _shift_way(linear: Linear, flow: Flow, shift: Coefficient, padding: str) -> str:
    """How a shift of the input is absorbed: ``bias``, ``map`` or ``pad``; refused otherwise."""
    node, dim = linear.node, linear.in_dim
    assert dim is not None
    uniform = all(extent == 1 for axis, extent in enumerate(shift.ids.shape) if axis != dim)
    if uniform and not linear.transposed and not pads_with_zeros(linear):
        return "bias"
    if not linear.kernel or shift.ids.dim() != linear.kernel + 2 or shift.ids.shape[0] != 1:
        raise Blocked(Reason.AXIS_MISMATCH, node)
    spatial = linear.data.meta["val"].shape[2:]
    can_map = not any(is_symbolic(size) for size in spatial)
    can_pad = (
        uniform
        and not linear.transposed
        and flow.scale is not None
        and _divisible(flow.scale, node)
    )
    before, after = torch.Size(shape_of(linear.data)).numel(), torch.Size(shape_of(node)).numel()
    # elements touched: a map adds once to the output, a pad copies the input per axis, scale-only adds to it
    costs = {"map": after if can_map else None, "pad": linear.kernel * before if can_pad else None}
    if padding == "scale-only":
        raise Blocked(Reason.ZERO_PADDING, node, "a shift would need a bias map or a pad")
    if padding in ("map", "pad") and costs[padding] is not None:
        return padding
    known = {way: cost for way, cost in costs.items() if cost is not None}
    if not known:
        raise Blocked(
            Reason.ZERO_PADDING, node, "sizes are dynamic and some scale is too small to divide by"
        )
    way = min(known, key=lambda name: known[name])
    if padding == "cheapest" and before < known[way]:
        raise Blocked(
            Reason.ZERO_PADDING, node, f"adding touches {before} elements, a {way} {known[way]}"
        )
    return way


def _divisible(scale: Coefficient, node: fx.Node) -> bool:
    try:
        require_divisible(scale, node)
    except Blocked:
        return False
    return True


def _add_map(rewriter: Rewriter, linear: Linear, shift: Coefficient, weight: fx.Node) -> None:
    """Add the op's response to the constant shift, position by position."""
    node = linear.node
    sizes = [1, *(int(size) for size in shape_of(linear.data)[1:])]
    field = shift.select(rewriter, shift.ids, 0.0)
    if field.meta["val"].dim() != len(sizes):
        field = rewriter.expression(aten.reshape.default, field, list(shift.ids.shape))
    field = rewriter.cast(
        rewriter.expression(aten.expand.default, field, sizes), weight.meta["val"].dtype
    )
    args: list[Any] = list(node.args)
    args[0], args[1] = field, weight
    if len(args) > 2:
        args[2] = None
    assert callable(node.target)
    response = rewriter.expression(node.target, *args, **node.kwargs)
    added = rewriter.insert_after(node, aten.add.Tensor, node, response)
    rewriter.replace(node, added, keep=(added,))


def _pad_input(rewriter: Rewriter, linear: Linear, flow: Flow, ids: Tensor) -> None:
    """Pad with ``-b / a`` explicitly and let the convolution pad nothing."""
    node = linear.node
    assert flow.scale is not None and flow.shift is not None and linear.in_dim is not None
    scale_ids = along(flow.scale, linear.in_dim, ids.numel(), node)
    scale = flow.scale.select(rewriter, scale_ids, 1.0)
    shift = flow.shift.select(rewriter, ids, 0.0)
    value = rewriter.expression(
        aten.neg.default, rewriter.expression(aten.div.Tensor, shift, scale)
    )
    padded = rewriter.insert_before(
        node, custom_ops.channel_pad, linear.data, _pad_widths(linear), value, linear.in_dim
    )
    rewriter.set_argument(node, 0, padded)
    if isinstance(argument(node, "padding"), str):
        stride, dilation, groups = (
            argument(node, name) for name in ("stride", "dilation", "groups")
        )
        args = (padded, linear_weight(linear), linear.bias, stride, [0], dilation, groups)
        rewriter.set_call(node, getattr(aten, op_name(node)).default, args)
    else:
        rewriter.set_argument(node, argument_index(node, "padding"), [0] * linear.kernel)


def _pad_widths(linear: Linear) -> list[int]:
    """`F.pad` widths (last axis first) that equal the convolution's own zero padding."""
    padding = argument(linear.node, "padding")
    if isinstance(padding, str):  # "same": the odd element goes behind, as torch does
        dilation = argument(linear.node, "dilation")
        dilation = dilation if isinstance(dilation, (list, tuple)) else [dilation]
        totals = [
            int(dilation[axis if len(dilation) > 1 else 0]) * (size - 1)
            for axis, size in enumerate(shape_of(linear.weight)[2:])
        ]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        widths = list(padding) if isinstance(padding, (list, tuple)) else [padding]
        widths = widths * linear.kernel if len(widths) == 1 else widths
        pairs = [(int(width), int(width)) for width in widths]
    return [width for pair in reversed(pairs) for width in pair]
