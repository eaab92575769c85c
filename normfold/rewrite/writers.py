"""Writers: ops whose parameters can take over a centring of what they produce.

P (W x + c) = (P W) x + P c, and (P W)[i] = W[i] - mean of W over the group of output i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ops import groups as grouping
from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, row_of
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Writer:
    """An op that writes features with a parameter: ``axis`` of the weight is ``out_dim`` of the result.

    ``blocks`` is the number of convolution groups: outputs of different ones have different inputs.
    """

    node: fx.Node
    weight: fx.Node
    weight_position: int
    axis: int
    out_dim: int
    bias: fx.Node | None = None
    bias_position: int | None = None
    blocks: int = 1

    def absorbs(self, groups: Tensor) -> bool:
        """True if the weight can be centred in ``groups``."""
        if grouping.axes(groups) != [self.out_dim]:
            return False
        if self.blocks == 1:
            return True
        numbers = groups.reshape(-1)
        block = torch.arange(len(numbers)) // (len(numbers) // self.blocks)
        spread = [block[numbers == number] for number in range(int(numbers.amax()) + 1)]
        return self.axis == 0 and all(bool((part == part[0]).all()) for part in spread)

    def center(self, rewriter: Rewriter, groups: Tensor) -> fx.Node:
        """Centre what the op writes, through its weight and bias; returns the weight."""
        numbers = groups.reshape(-1)
        now = writer_of(self.node)  # an earlier edit may have changed its weight
        assert now is not None
        centred = center_along(rewriter, now.weight, now.axis, numbers)
        rewriter.set_argument(self.node, now.weight_position, centred)
        if now.bias is not None and now.bias_position is not None:
            bias = center_along(rewriter, now.bias, 0, numbers)
            rewriter.set_argument(self.node, now.bias_position, bias)
        rewriter.record(f"{self.node.name}: output centred")
        return centred


def writer_of(node: fx.Node) -> Writer | None:
    """View of a linear op as a writer, or None: `linear_of`, and products with a stack of matrices (experts)."""
    if node.op != "call_function" or is_static(node):
        return None
    linear = linear_of(node)
    if linear is not None:
        bias = linear.bias if isinstance(linear.bias, fx.Node) else None
        return Writer(
            node,
            linear.weight,
            linear.weight_position,
            linear.out_axis,
            linear.out_dim,
            bias,
            linear.bias_position,
            linear.groups,
        )
    row = row_of(node)
    if row.kind is Kind.DOT and not row.attention and is_static(node.args[1]):
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        rank = len(shape_of(weight))
        return Writer(node, weight, 1, rank - 1, len(shape_of(node)) - 1) if rank > 2 else None
    return None


def reads_as_head(node: fx.Node, writer: Writer) -> bool:
    """True for a linear op whose weight is the writer's table: its inputs are what the table writes."""
    linear = linear_of(node)
    return (
        linear is not None
        and linear.weight is writer.weight
        and linear.in_axis == writer.axis
        and linear.out_axis == 0
        and not linear.kernel
    )


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
