"""The ops of a quantised graph, in torch as the runtime's integers do it.

Until it is baked, a value on a grid is one op, and a function of the floats that it rounds::

    on_grid(x, scale, zero_point, dim, block, low, high, rounding) = (q - zero_point) * scale
    q = clip(round(x / scale) + zero_point, low, high)                  half to even

With the rounding ``e4m3`` the steps q are 8-bit floats (4 of exponent, 3 of mantissa), and the zero point is 0.

Its gradient passes straight through the rounding: that of x is the result's where x lies on the grid and 0 where
it is clipped, that of the scale is what the rounded value changes by (Esser et al. 2020, "Learned step size
quantization"). ``on_dynamic_grid(x)`` finds one grid of 8 bits for the whole of x.

Baked, it is stored: ``dequantize(q, scale, zero_point, dim, block, bits)``, of steps in the file or of
``quantize(x, scale, zero_point, dim)``, whose steps have the type of the zero point; ``dynamic_matmul(x, q, scale,
transposed)``, which is ``on_dynamic_grid(x) @ (q * scale)`` with one scale per column of q, or with q' where it is
transposed; and ``take_rows(q, scale, ids, block, bits)``, rows of a table with one scale per row or per block of a
row. ``to_steps`` is the expression of the steps in the file. Each is one op in ONNX, but for the last two.
``bits`` 4 stores two values in a byte in the file; here they lie in an int8.

``stored_matmul(x, q, scale, zero_point, block, bits)`` is the product of x (..., inputs), in floats, and a weight
that was on a grid before anything was rounded: q (outputs, inputs) is unsigned, scale and zero point (outputs,
blocks); without a zero point it is 2**(bits - 1) for all. It computes what the product with the floats does.

Scale and zero point are single numbers (``dim`` None), one per channel along ``dim``, or one per block of
``block`` values along it (``block`` > 0). ``global_pool(x)`` is the mean over all axes behind the second, kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normfold.ir.grids import E4M3, Rounding, nearest, rounded, spread, total

_GRID = "Tensor x, Tensor scale, Tensor? zero_point, int? dim, int block, int low, int high, str rounding"
_LIBRARY = torch.library.Library("normfold", "FRAGMENT")
_LIBRARY.define(f"on_grid({_GRID}) -> Tensor")
_LIBRARY.define(f"to_steps({_GRID}) -> Tensor")
_LIBRARY.define("on_dynamic_grid(Tensor x) -> Tensor")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int? dim) -> Tensor")
_LIBRARY.define(
    "dequantize(Tensor q, Tensor scale, Tensor? zero_point, int? dim, int block, int bits) -> Tensor"
)
_LIBRARY.define("global_pool(Tensor x) -> Tensor")
_LIBRARY.define("dynamic_matmul(Tensor x, Tensor q, Tensor scale, bool transposed) -> Tensor")
_LIBRARY.define("take_rows(Tensor q, Tensor scale, Tensor ids, int block, int bits) -> Tensor")
_LIBRARY.define(
    "stored_matmul(Tensor x, Tensor q, Tensor scale, Tensor? zero_point, int block, int bits) -> Tensor"
)


def _steps(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dim: int | None,
    block: int,
    low: int,
    high: int,
    rounding: Rounding,
) -> Tensor:
    """The steps less the zero point, as floats."""
    if zero_point is None:  # a parameter, exactly as it will be stored
        return rounded(x, scale, dim, block, low, high, rounding)
    v = x / spread(scale, x, dim, block)
    if rounding == "e4m3":
        return nearest(v, low, high, rounding)
    zero = spread(zero_point.to(x.dtype), x, dim, block)
    return (torch.round(v) + zero).clamp(low, high) - zero


def _on_grid(
    x: Tensor, scale: Tensor, zero: Tensor | None, dim: int | None, block: int, *how: Any
) -> Tensor:
    steps = _steps(x, scale, zero, dim, block, *how).to(x.dtype)
    return steps * spread(scale.to(x.dtype), x, dim, block)


def _to_steps(
    x: Tensor, scale: Tensor, zero: Tensor | None, dim: int | None, block: int, *how: Any
) -> Tensor:
    steps = _steps(x, scale, zero, dim, block, *how)
    if zero is not None:
        steps = steps + spread(zero.to(steps.dtype), x, dim, block)
    return steps.to(stored_type(*how))


def stored_type(low: int, high: int, rounding: Rounding) -> torch.dtype:
    """The type of parameters on a grid."""
    if rounding == "e4m3":
        return E4M3
    if (low, high) == (0, 255):
        return torch.uint8
    return torch.int8 if low >= -128 and high <= 127 else torch.int32


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.how = inputs
    ctx.save_for_backward(x, scale, zero_point, output)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point, output = ctx.saved_tensors
    dim, block, low, high, rounding = ctx.how
    wide = spread(scale.to(x.dtype), x, dim, block)
    zero = 0.0 if zero_point is None else spread(zero_point.to(x.dtype), x, dim, block)
    steps = x / wide if rounding == "e4m3" else torch.round(x / wide) + zero
    inside = (steps >= low) & (steps <= high)
    of_scale = gradient * (output - torch.where(inside, x, 0.0)) / wide
    return gradient * inside, total(of_scale, dim, block).reshape(scale.shape), *[None] * 6


def _pooled(ctx: Any, gradient: Tensor) -> Tensor:
    size: torch.Size = ctx.shape
    return gradient.expand(size) / size[2:].numel()


def _shape_of(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _on_dynamic_grid(x: Tensor) -> Tensor:
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = torch.where(high > low, (high - low) / 255, 1.0)
    zero_point = torch.round(-low / step).clamp(0, 255)
    return ((torch.round(x / step) + zero_point).clamp(0, 255) - zero_point) * step


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, dim: int | None) -> Tensor:
    v = x / spread(scale, x, dim, 0)
    if zero_point.dtype == E4M3:
        limit = torch.finfo(E4M3).max
        return v.clamp(-limit, limit).to(E4M3)
    limits = torch.iinfo(zero_point.dtype)
    steps = torch.round(v) + spread(zero_point, x, dim, 0)
    return steps.clamp(limits.min, limits.max).to(zero_point.dtype)


def _dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, dim: int | None, block: int, bits: int
) -> Tensor:
    steps = q.to(scale.dtype)
    if zero_point is not None:
        steps = steps - spread(zero_point.to(scale.dtype), q, dim, block)
    return steps * spread(scale, q, dim, block)


def _global_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _dynamic_matmul(x: Tensor, q: Tensor, scale: Tensor, transposed: bool) -> Tensor:
    q = q.t() if transposed else q
    return (_on_dynamic_grid(x) @ q.to(x.dtype)) * scale.to(x.dtype)


def _stored_matmul(
    x: Tensor, q: Tensor, scale: Tensor, zero_point: Tensor | None, block: int, bits: int
) -> Tensor:
    zero = (
        2 ** (bits - 1) if zero_point is None else spread(zero_point.to(scale.dtype), q, 1, block)
    )
    weight = (q.to(scale.dtype) - zero) * spread(scale, q, 1, block)
    return x @ weight.to(x.dtype).t()


def _take_rows(q: Tensor, scale: Tensor, ids: Tensor, block: int, bits: int) -> Tensor:
    rows, scales = q[ids].to(scale.dtype), scale[ids]
    return rows * (spread(scales, rows, rows.dim() - 1, block) if block else scales[..., None])


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


for _name, _function, _fake in (
    ("on_grid", _on_grid, _like),
    ("to_steps", _to_steps, lambda x, *rest: torch.empty_like(x, dtype=stored_type(*rest[4:7]))),
    ("on_dynamic_grid", _on_dynamic_grid, _like),
    ("quantize", _quantize, _quantize),
    ("dequantize", _dequantize, _dequantize),
    ("global_pool", _global_pool, _global_pool),
    ("dynamic_matmul", _dynamic_matmul, _dynamic_matmul),
    ("stored_matmul", _stored_matmul, _stored_matmul),
    ("take_rows", _take_rows, _take_rows),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"normfold::{_name}", _fake, lib=_LIBRARY)
for _name, _backward, _setup in (
    ("on_grid", _straight_through, _remember),
    ("on_dynamic_grid", lambda ctx, gradient: gradient, None),
    ("global_pool", _pooled, _shape_of),
):
    torch.library.register_autograd(
        f"normfold::{_name}", _backward, setup_context=_setup, lib=_LIBRARY
    )

on_grid = torch.ops.normfold.on_grid.default
to_steps = torch.ops.normfold.to_steps.default
on_dynamic_grid = torch.ops.normfold.on_dynamic_grid.default
quantize = torch.ops.normfold.quantize.default
dequantize = torch.ops.normfold.dequantize.default
global_pool = torch.ops.normfold.global_pool.default
dynamic_matmul = torch.ops.normfold.dynamic_matmul.default
stored_matmul = torch.ops.normfold.stored_matmul.default
take_rows = torch.ops.normfold.take_rows.default
UNSTORED = (on_grid, on_dynamic_grid)  # what `bake` makes integers of
