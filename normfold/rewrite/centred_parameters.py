"""Centring of what ops write, through their parameters.

P (W x + c) = (P W) x + P c, and (P W)[i] = W[i] - mean of W over the group of output i.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from normfold.ir.graph import shape_of
from normfold.ops import groups as grouping
from normfold.ops.linear import linear_of
from normfold.rewrite.rewriter import Rewriter
from normfold.spaces.writers import writer_of

aten = torch.ops.aten


def center_writer(rewriter: Rewriter, node: fx.Node, groups: Tensor) -> fx.Node:
    """Centre what a linear op writes, through its weight and bias; returns the weight."""
    numbers = groups.reshape(-1)
    writer = writer_of(node)
    assert writer is not None
    centred = center_along(rewriter, writer.weight, writer.axis, numbers)
    rewriter.set_argument(node, writer.weight_position, centred)
    if writer.bias is not None and writer.bias_position is not None:
        bias = center_along(rewriter, writer.bias, 0, numbers)
        rewriter.set_argument(node, writer.bias_position, bias)
    rewriter.record(f"{node.name}: output centred")
    return centred


def correct_head(rewriter: Rewriter, head: fx.Node, table: fx.Node, centred: fx.Node) -> None:
    """Let a head read the centred table: E h = (E P) h + mean(E) sum(h), with the row means of the table E."""
    linear = linear_of(head)
    assert linear is not None
    means = rewriter.expression(aten.mean.dim, table, [1])
    rewriter.set_argument(head, linear.weight_position, centred)
    total = rewriter.insert_after(head, aten.sum.dim_IntList, linear.data, [-1], True)
    part = rewriter.insert_after(total, aten.mul.Tensor, total, means)
    result = rewriter.insert_after(part, aten.add.Tensor, head, part)
    rewriter.replace(head, result, keep=(result,))
    rewriter.record(f"{head.name}: corrected for the centred table")


def center_along(rewriter: Rewriter, value: fx.Node, axis: int, numbers: Tensor) -> fx.Node:
    """Expression: ``value`` minus, along ``axis``, the mean of its group; ``numbers`` is -1 outside groups."""
    if bool((numbers == 0).all()):
        mean = rewriter.expression(aten.mean.dim, value, [axis], True)
        return rewriter.expression(aten.sub.Tensor, value, mean)
    count = int(numbers.amax()) + 1
    index = rewriter.constant(torch.where(numbers < 0, count, numbers), "groups")
    sizes = rewriter.constant(torch.bincount(numbers[numbers >= 0], minlength=count), "sizes")
    shape = list(shape_of(value))
    shape[axis] = count + 1  # the last one collects what belongs to no group
    total = rewriter.expression(aten.full.default, shape, 0.0, dtype=value.meta["val"].dtype)
    total = rewriter.expression(aten.index_add.default, total, axis, index, value)
    total = rewriter.expression(aten.slice.Tensor, total, axis, 0, count)
    wide = rewriter.expression(aten.reshape.default, sizes, [-1] + [1] * (len(shape) - 1 - axis))
    mean = rewriter.expression(aten.div.Tensor, total, wide)
    shape[axis] = 1
    none = rewriter.expression(aten.full.default, shape, 0.0, dtype=value.meta["val"].dtype)
    mean = rewriter.expression(aten.cat.default, [mean, none], axis)
    mean = rewriter.expression(aten.index_select.default, mean, axis, index)
    return rewriter.expression(aten.sub.Tensor, value, mean)


def center_constant(rewriter: Rewriter, value: fx.Node, groups: Tensor) -> fx.Node:
    """Expression: a parameter minus the mean of its groups, which run over one axis or fill several."""
    along = grouping.axes(groups)
    if len(along) == 1:
        return center_along(rewriter, value, along[0], groups.reshape(-1))
    mean = rewriter.expression(aten.mean.dim, value, along, True)
    return rewriter.expression(aten.sub.Tensor, value, mean)
