"""Writers: linear ops that make the features of a tensor with a parameter, and so can take a transform into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ops import groups as grouping
from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, row_of


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
