"""Borders that were assigned, as paddings with a constant, or one per channel."""

from __future__ import annotations

import sys

import torch
from torch import fx

from normfold.ir.custom_ops import channel_pad
from normfold.ir.graph import shape_of
from normfold.ops.writes import Border
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten


def write_border(node: fx.Node, border: Border, rewriter: Rewriter) -> None:
    """Replace ``node`` by the data within its border, padded."""
    data = border.data
    for dim, (low, high) in border.cropped.items():
        end = -high if high else sys.maxsize
        data = rewriter.insert_before(node, _aten.slice.Tensor, data, dim, low, end)
    axes = range(len(shape_of(node)) - 1, min(border.widths) - 1, -1)
    pad = [width for dim in axes for width in border.widths.get(dim, (0, 0))]
    if border.channel is None or border.value == 0:  # what `F.pad` makes: folds know zeros
        args = data, pad, "constant", border.value
        rewriter.replace(node, rewriter.insert_before(node, _aten.pad.default, *args))
        return
    size = int(shape_of(node)[border.channel])
    if isinstance(border.value, fx.Node):
        value = rewriter.expression(_aten.reshape.default, border.value, [-1])
        if shape_of(value)[0] != size:
            value = rewriter.expression(_aten.expand.default, value, [size])
    else:
        dtype = node.meta["val"].dtype
        value = rewriter.expression(_aten.full.default, [size], border.value, dtype=dtype)
    result = rewriter.insert_before(node, channel_pad, data, pad, value, border.channel)
    rewriter.replace(node, result)
