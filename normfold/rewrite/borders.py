"""Borders that were assigned, as paddings between two affines."""

from __future__ import annotations

import sys

import torch
from torch import fx

from normfold.ir import Site, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.graph import shape_of
from normfold.ir.sites import AffineOf
from normfold.ops.writes import Border
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten
_PAD = _aten.constant_pad_nd.default  # `pad` would fix sizes that are free


def write_border(
    node: fx.Node, border: Border, rewriter: Rewriter, sites: tuple[Site, ...]
) -> None:
    """Replace ``node`` by ``pad(data - value, 0) + value``; a number is padded with."""
    data = border.data
    for dim, (low, high) in border.cropped.items():
        end = -high if high else sys.maxsize
        data = rewriter.insert_before(node, _aten.slice.Tensor, data, dim, low, end)
    axes = range(len(shape_of(node)) - 1, min(border.widths) - 1, -1)
    pad = [width for dim in axes for width in border.widths.get(dim, (0, 0))]
    if not isinstance(border.value, fx.Node):
        result = rewriter.insert_before(node, _PAD, data, pad, border.value)
        rewriter.replace(node, result)
        return
    size, dim = int(shape_of(node)[border.channel]), border.channel
    shift = rewriter.expression(_aten.reshape.default, border.value, [-1])
    if shape_of(shift)[0] != size:
        shift = rewriter.expression(_aten.expand.default, shift, [size])
    less = rewriter.expression(_aten.neg.default, shift)
    data = rewriter.insert_before(node, channel_affine, data, None, less, dim)
    inside = rewriter.insert_before(node, _PAD, data, pad, 0.0)
    result = rewriter.insert_before(node, channel_affine, inside, None, shift, dim)
    for affine in (data, result):
        facts.put(affine, AffineOf(sites))
    rewriter.replace(node, result)
