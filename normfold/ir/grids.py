"""Weights on grids: choice of the scale, and rounding.

With v = w / s, q the integers and e = q - v:

nearest  |e| <= 1/2 for every weight
squant   |e| <= 1, and the sum of e is at most 1/2 over every kernel and over every output channel: what the sums
         of a layer see of its rounding vanishes (Guo et al. 2022, "SQuant: on-the-fly data-free quantization via
         diagonal Hessian approximation"; written from the formulas)
e4m3     the nearest float of 4 exponent and 3 mantissa bits, ties to even: |e| <= |v| / 16 from 2^-6 on, and
         |e| <= 2^-10 below (Micikevicius et al. 2022, "FP8 formats for deep learning")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from normfold.ir.known_grids import channels_of

Rounding = Literal["nearest", "squant", "e4m3"]  # of one weight by itself
E4M3 = torch.float8_e4m3fn
_CLIPS = [1.0 - 0.025 * step for step in range(17)]  # down to 0.6 of the largest weight
_FINE = 8  # bits of whose steps none is missed


@dataclass(frozen=True)
class Grid:
    """Integers and scales: ``steps`` (int8, the weight's shape), ``scale`` (C,) along ``axis``, or (..., blocks)
    with blocks of ``block`` weights along it; ``bits`` that the integers use."""

    steps: Tensor
    scale: Tensor
    axis: int
    block: int
    bits: int

    @property
    def values(self) -> Tensor:
        """The weights that the grid holds, in float64."""
        return self.steps.double() * spread(self.scale.double(), self.steps, self.axis, self.block)


def spread(scale: Tensor, like: Tensor, axis: int | None, block: int) -> Tensor:
    """Scales so that they broadcast against the weight; ``axis`` None: one for all of it."""
    if axis is None:
        return scale
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    return scale.reshape([-1] + [1] * (like.dim() - 1 - axis % like.dim()))


def total(values: Tensor, axis: int | None, block: int) -> Tensor:
    """The sum of the values that share a scale: the transpose of `spread`."""
    if axis is None:
        return values.sum()
    if block:
        return torch.stack([piece.sum(axis) for piece in values.split(block, axis)], axis)
    return values.movedim(axis, 0).reshape(values.shape[axis], -1).sum(1)


def scale_of(
    weight: Tensor,
    axis: int,
    bits: int,
    block: int = 0,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
    importance: Tensor | None = None,
) -> Tensor:
    """The scales of a grid without a zero point.

    Scales of blocks have the 8 leading bits of bfloat16, as which files hold them. Below 8 bits they may be
    negative: a block's largest weight then takes the end of the grid that has one step more.

    Args:
        weight: any floats.
        axis: output channels; with ``block`` the axis that the blocks lie along (input features).
        bits: 2 to 8.
        clip: choose every scale by the squared error instead of by the largest weight.
        dtype: of the scales, which are rounded to it.
        importance: factors of the squared errors, which broadcast against the weight.
    """
    low, high = limits(bits, block)
    clips = _CLIPS if clip and bits < _FINE else _CLIPS[:1]
    if low != -high:
        clips = [share * sign for share in clips for sign in (1.0, -1.0)]
    exact = weight.double() if len(clips) == 1 else weight.float()
    scale = _largest(exact, axis, block) / -low
    if len(clips) > 1:
        scale = _least_error(exact, scale, axis, block, clips, (low, high), importance)
    scale = torch.where(scale != 0, scale, 1.0)
    return (scale.bfloat16() if block else scale).to(dtype)


def kept_scale(
    weight: Tensor, axis: int, bits: int, block: int, dtype: torch.dtype
) -> Tensor | None:
    """The scales of the grid that a weight is on already, but for the rounding of its values to ``dtype``.

    So are those of a network that was trained with rounded weights. The largest integer need not be there, and the
    smallest may be -2^(bits - 1).
    """
    known = channels_of(weight.double(), axis, bits, block, dtype, stored=dtype)
    return None if known is None else known[1]


def grid_of(
    weight: Tensor,
    axis: int,
    bits: int,
    block: int = 0,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, int]:
    """The scales of a weight's grid, its own or a new one, and its smallest step; arguments as of `scale_of`."""
    known = kept_scale(weight, axis, bits, block, dtype)
    if known is not None:
        return known, -top_of(bits) - 1
    return scale_of(weight, axis, bits, block, clip, dtype), limits(bits, block)[0]


def top_of(bits: int) -> int:
    """The largest integer of a symmetric grid; the smallest of a new one is its negative."""
    return int(2 ** (bits - 1) - 1)


def limits(bits: int, block: int) -> tuple[int, int]:
    """The ends of a grid: symmetric where integers are multiplied, all that there is in blocks of few bits."""
    top = top_of(bits)
    return (-top - 1 if block and bits < _FINE else -top), top


def rounded(
    weight: Tensor,
    scale: Tensor,
    axis: int | None,
    block: int,
    low: int,
    high: int,
    rounding: Rounding = "nearest",
) -> Tensor:
    """The steps of a weight on a grid, in float64; ``axis`` as in `scale_of`, or None for one scale."""
    v = weight.double() / spread(scale.double(), weight, axis, block)
    q = nearest(v, low, high, rounding)
    if rounding == "squant" and axis is not None and weight.dim() > 1:
        # blocks are of a matrix, and its channels lie along the other axis
        q = _squant(v, q, 1 - axis % 2 if block else axis, low, high)
    return q


def nearest(v: Tensor, low: int, high: int, rounding: Rounding) -> Tensor:
    """The steps nearest to ``v``, half to even, in its type: integers, or floats of 8 bits. Beyond the ends they
    are the ends."""
    if rounding == "e4m3":
        return v.clamp(low, high).to(E4M3).to(v.dtype)
    return v.round().clamp(low, high)


def to_grid(
    weight: Tensor,
    axis: int,
    bits: int,
    block: int = 0,
    rounding: Rounding = "nearest",
    clip: bool = False,
) -> Grid:
    """The weight on a grid without a zero point; arguments as of `grid_of`."""
    scale, low = grid_of(weight, axis, bits, block, clip)
    q = rounded(weight, scale, axis, block, low, top_of(bits), rounding)
    return Grid(q.to(torch.int8), scale, axis, block, bits)


def _largest(weight: Tensor, axis: int, block: int) -> Tensor:
    if not block:
        return weight.abs().amax([dim for dim in range(weight.dim()) if dim != axis])
    pieces = weight.abs().split(block, axis)
    return torch.stack([piece.amax(axis) for piece in pieces], axis)


def _least_error(
    weight: Tensor,
    scale: Tensor,
    axis: int,
    block: int,
    clips: Sequence[float],
    ends: tuple[int, int],
    importance: Tensor | None,
) -> Tensor:
    """For every scale the multiple of it, out of ``clips``, that has the least squared error."""
    best, least = scale, torch.full_like(scale, torch.inf)
    for share in clips:
        tried = scale * share
        wide = spread(torch.where(tried != 0, tried, 1.0), weight, axis, block)
        error = ((weight / wide).round().clamp_(*ends) * wide).sub_(weight).square_()
        if importance is not None:
            error *= importance
        summed = total(error, axis, block)
        better = summed < least
        best, least = torch.where(better, tried, best), torch.where(better, summed, least)
    return best


def _squant(v: Tensor, q: Tensor, axis: int, low: int, high: int) -> Tensor:
    order = [axis, *(dim for dim in range(v.dim()) if dim != axis)]
    shape = [v.shape[dim] for dim in order]
    flat = [x.permute(order).reshape(shape[0], shape[1], -1) for x in (v, q)]
    v3, q3 = flat[0], flat[1].clone()
    if v3.shape[2] > 1:
        _flip(v3, q3, low, high)
    _flip_channels(v3, q3, low, high)
    back = [order.index(dim) for dim in range(v.dim())]
    return q3.reshape(shape).permute(back)


def _flip(v: Tensor, q: Tensor, low: int, high: int) -> None:
    """Move as many weights of each row to their other neighbour as brings the sum of errors below 1/2, in place.

    Those with the largest error of the sum's sign; rows are all axes but the last.
    """
    error = q - v
    total = error.sum(-1, keepdim=True)
    sign = total.sign()
    score = _score(error * sign, q - sign, low, high)
    rank = score.argsort(-1, descending=True).argsort(-1)
    q -= sign * ((rank < total.abs().round()) & (score > 0))


def _flip_channels(v: Tensor, q: Tensor, low: int, high: int) -> None:
    """The same over whole output channels, with at most one weight of each kernel, in place."""
    error = q - v
    sign = error.sum((1, 2), keepdim=True).sign()
    of_kernel = error.sum(2) * sign[:, :, 0]
    score = _score(error * sign, q - sign, low, high)
    candidate = score.argmax(2, keepdim=True)
    usable = (score.gather(2, candidate)[:, :, 0] > 0) & (of_kernel >= 0)
    rank = of_kernel.masked_fill(~usable, -torch.inf).argsort(1, descending=True).argsort(1)
    count = error.sum((1, 2)).abs().round()[:, None]
    chosen = (rank < count) & usable
    q.scatter_add_(2, candidate, (-sign[:, :, 0] * chosen)[:, :, None])


def _score(gain: Tensor, moved: Tensor, low: int, high: int) -> Tensor:
    """The error that a move takes away; -1 where it would leave the grid."""
    return torch.where((moved >= low) & (moved <= high) & (gain > 0), gain, -1.0)
