"""Does a tensor hold attention weights whose rows sum to one along the contracted axis?"""

from __future__ import annotations

import torch
from torch import fx

from normfold.ir.graph import argument, shape_of
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.reads import operands
from normfold.ops.table import Kind, kind_of, row_of


def rows_sum_to_one(node: fx.Node, weights: fx.Node) -> bool:
    """True if the factor ``weights`` of the product ``node`` sums to one along the axis that is summed over.

    Known for softmax, seen through ops that move elements, and for scaled_dot_product_attention without a
    mask (a row that a mask empties sums to zero).
    """
    if row_of(node).attention:
        return argument(node, "attn_mask") is None and not argument(node, "dropout_p")
    contracted = -1 if node.args[0] is weights else -2
    moves: list[fx.Node] = []
    source = weights
    while kind_of(source) is Kind.MOVE and len(operands(source)) == 1:
        moves.append(source)
        source = operands(source)[0]
    if not row_of(source).sums_to_one:
        return False
    shape = shape_of(source)
    dim = int(argument(source, "dim")) % len(shape)
    # number the elements, move the numbers, and see that what is summed over is one whole row, each element once
    elements = torch.arange(torch.Size(shape).numel()).reshape(shape)
    others = [size for axis, size in enumerate(shape) if axis != dim]
    rows = torch.arange(torch.Size(others).numel()).reshape(others).unsqueeze(dim)
    row_at = rows.expand(shape).reshape(-1)
    try:
        for move in reversed(moves):
            elements = layout.push(move, operands(move)[0], elements)
    except LayoutError:
        return False
    if elements.shape[contracted] != shape[dim] or bool((elements < 0).any()):
        return False
    moved = row_at[elements]
    one_row = bool((moved == moved.narrow(contracted, 0, 1)).all())
    ordered = elements.sort(contracted).values
    return one_row and bool((ordered.diff(dim=contracted) > 0).all())
