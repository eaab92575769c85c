"""Grids that weights are on already, recognised from their values: binary, ternary, or trained on 4 or 8 bits.

The values of a group (an output channel, or a block of its inputs) are on a grid if each is an integer times one
step. The least magnitude m is then k steps, k being one of the first few hundred integers: the step is the largest
m / k that makes integers of all values; it is refined by least squares, rounded to its type, and holds if the
products are the values. Random weights are on no grid: one of them is a multiple of a given step, to within what
float32 allows, at most once in 8,000 times, and all of all groups have to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST = 8  # groups to look at before all others
_AT_ONCE = 1 << 21  # values
BLOCKS = (256, 128, 64, 32, 16)  # of inputs with one scale, that kernels take
BITS = (2, 4, 8)


@dataclass(frozen=True)
class Blocks:
    """A matrix in unsigned integers: weight = (integers - zero point) * scale, block by block of a row.

    Attributes:
        integers: (outputs, inputs), uint8, each below 2**bits.
        scale: (outputs, blocks), float32.
        zero_point: (outputs, blocks), uint8; None for the middle of the range, 2**(bits - 1).
        block: inputs that share a scale; the last block of a row may be shorter.
        bits: 2, 4 or 8.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None
    block: int
    bits: int

    @property
    def bytes(self) -> int:
        """Of a file: integers of whole blocks, scales and zero points."""
        size = self.scale.numel() * (self.block * self.bits // 8 + self.scale.element_size())
        if self.zero_point is not None:
            size += self.zero_point.shape[0] * -(-self.zero_point.shape[1] * self.bits // 8)
        return size


def multiples(
    groups: Tensor,
    most: int,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor] | None:
    """Write every group as integers times a step.

    Args:
        groups: (G, n), taken in float64; zeros belong to every grid.
        most: the largest magnitude of an integer.
        dtype: of the steps.
        stored: the type that values were rounded to, at most twice (the second time with a gain folded into them).

    Returns:
        Integers (G, n), int16, and steps (G,); None if a single group is on no such grid.
    """
    if not groups.numel():
        return None
    found, at, size = [], 0, _FIRST
    ulp = max(torch.finfo(stored).eps, torch.finfo(torch.float32).eps)
    while at < len(groups):
        made = _multiples(groups[at : at + size].double(), most, dtype, ulp)
        if made is None:
            return None
        found.append(made)
        at += size
        size = max(_FIRST, _AT_ONCE // max(1, groups.shape[1]))
    integers, steps = zip(*found, strict=True)
    return torch.cat(integers), torch.cat(steps)


def _multiples(
    groups: Tensor, most: int, dtype: torch.dtype, ulp: float
) -> tuple[Tensor, Tensor] | None:
    if not bool(groups.isfinite().all()):
        return None
    size = groups.abs()
    least = torch.where(size > 0, size, torch.inf).amin(1)
    integers = torch.zeros_like(groups, dtype=torch.int16)
    open_ = least.isfinite().nonzero()[:, 0]
    for k in range(1, most + 1):
        if not len(open_):
            break
        rows, step = groups[open_], least[open_, None] / k
        tried = (rows / step).round()
        if bool((tried.abs().amax(1) > most).any()):  # finer steps need larger integers still
            return None
        # the step is only as good as the least magnitude, which was rounded too
        fits = ((rows - tried * step).abs() <= 3 * ulp * rows.abs()).all(1)
        integers[open_[fits]] = tried[fits].to(torch.int16)
        open_ = open_[~fits]
    if len(open_):
        return None
    steps = _fitted(groups, integers, dtype, 2 * ulp)
    return None if steps is None else (integers, steps)


def _fitted(groups: Tensor, integers: Tensor, dtype: torch.dtype, error: float) -> Tensor | None:
    """The steps, rounded to their type, whose products are the values; None if those of a group are not."""
    q = integers.double()
    squares = q.square().sum(1)
    best = torch.where(squares > 0, (groups * q).sum(1) / squares.clamp_min(1), 1.0).to(dtype)
    worst = torch.full_like(squares, torch.inf)
    up, down = (torch.tensor(x, dtype=dtype) for x in (torch.inf, -torch.inf))
    wide = torch.promote_types(dtype, torch.float32)
    for step in (best, torch.nextafter(best, up), torch.nextafter(best, down)):
        products = (integers.to(wide) * step.to(wide)[:, None]).double()
        off = ((products - groups).abs() / groups.abs().clamp_min(1e-300)).amax(1)
        if not bool(off.any()):
            return step
        better = off < worst
        best, worst = torch.where(better, step, best), torch.where(better, off, worst)
    return best if bool((worst <= error).all()) else None


def blocks_of(weight: Tensor, least: int = 2, stored: torch.dtype = torch.float32) -> Blocks | None:
    """The fewest bytes that hold a matrix as it is. One scale per row is stored in blocks too.

    Args:
        weight: (outputs, inputs).
        least: bits at least.
        stored: as of `multiples`.

    Returns:
        The integers and scales, or None where the values are on no grid.
    """
    inputs, most = weight.shape[1], 2 ** BITS[-1] - 1
    rows = multiples(weight, most, stored=stored)
    if rows is not None:
        bits = max(least, _bits(rows[0]) or least)
        block = min(BLOCKS, key=lambda size: -(-inputs // size) * (size * bits + 32))
        return _unsigned(_cut(rows[0], block), rows[1], inputs, block, least)
    best: Blocks | None = None
    for block in BLOCKS:
        made = multiples(_cut(weight, block), most, stored=stored)
        found = None if made is None else _unsigned(*made, inputs, block, least)
        if found is not None and (best is None or found.bytes < best.bytes):
            best = found
    return best


def _cut(rows: Tensor, block: int) -> Tensor:
    """Rows in blocks (rows * blocks, block), the last one filled with zeros."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % block))
    return padded.reshape(-1, block)


def _bits(integers: Tensor) -> int | None:
    """The bits that hold integers, each row of them with a zero point where that helps; None if none do."""
    span = integers.amax(1).clamp_min(0) - integers.amin(1).clamp_max(0)
    return next((bits for bits in BITS if int(span.amax()) < 2**bits), None)


def _unsigned(
    integers: Tensor, steps: Tensor, inputs: int, block: int, least: int
) -> Blocks | None:
    """Signed integers (rows * blocks, block) in as few bits as hold them; ``steps`` are those of the blocks, or of
    whole rows."""
    groups = integers.reshape(len(steps), -1)
    fewest = _bits(groups)
    if fewest is None:
        return None
    bits, zero = max(least, fewest), None
    low, high = groups.amin(1).clamp_max(0), groups.amax(1).clamp_min(0)
    count, middle = -(-inputs // block), 2 ** (bits - 1)

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(len(integers) // len(steps)).reshape(-1, count)

    if bool((low >= -middle).all()) and bool((high < middle).all()):
        stored = groups + middle
    else:
        zero = spread(-low).to(torch.uint8)
        stored = groups - low[:, None]
    stored = stored.to(torch.uint8).reshape(-1, count * block)[:, :inputs].contiguous()
    return Blocks(stored, spread(steps), zero, block, bits)


def channels_of(
    weight: Tensor,
    axis: int,
    bits: int = 8,
    block: int = 0,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype = torch.float32,
    negative: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Signed integers of a weight with one step per output channel, or per block of inputs.

    Args:
        axis: output channels; with ``block`` the axis that the blocks lie along.
        bits: the integers lie from -2**(bits - 1) to 2**(bits - 1) - 1.
        dtype, stored: as of `multiples`.
        negative: steps may be: integers reach one further below 0 than above, and a gain below 0 turns that round.

    Returns:
        The integers, int16 and of the weight's shape, and the steps as `normfold.ir.grids.scale_of` has them; None
        where the values are on no such grid.
    """
    turned = weight.movedim(axis, -1 if block else 0)
    shape = turned.shape
    rows = turned.reshape(-1, shape[-1]) if block else turned.flatten(1)
    if not rows.numel():
        return None
    made = multiples(_cut(rows, block) if block else rows, 2 ** (bits - 1), dtype, stored)
    if made is None:
        return None
    integers, steps = made
    if negative:
        sign = torch.where(integers.amax(1) > -integers.amin(1), -1, 1).to(torch.int16)
        integers, steps = integers * sign[:, None], steps * sign
    if int(integers.amax()) >= 2 ** (bits - 1):
        return None
    if not block:
        return integers.reshape(shape).movedim(0, axis), steps
    integers = integers.reshape(len(rows), -1)[:, : shape[-1]].reshape(shape)
    return integers.movedim(-1, axis), steps.reshape(*shape[:-1], -1).movedim(-1, axis)
