"""The ops of a quantised graph: they run in torch as the runtime's integers do, and are single ops in ONNX.

``normfold::quantize(x, scale, zero_point, dim)`` is ``clip(round(x / scale) + zero_point)``, half to even, in the
type of the zero point. ``normfold::dequantize(q, scale, zero_point, dim, block, bits)`` is
``(q - zero_point) * scale``. Scale and zero point are single numbers (``dim`` None), one per channel along
``dim``, or one per block of ``block`` values along it (``block`` > 0). ``bits`` 4 stores two values in a byte in
the file; here they lie in an int8. ``normfold::simulate`` is both with steps from ``low`` to ``high``, fewer than
any kernel takes. ``normfold::global_pool(x)`` is the mean over all axes behind the second, kept.
``normfold::dynamic_matmul(x, q, scale)`` is ``x @ (q * scale)`` with x put on a grid of 8 bits at run time, one
for the whole tensor, and one scale per column of q.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("normfold", "FRAGMENT")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int? dim) -> Tensor")
_LIBRARY.define(
    "dequantize(Tensor q, Tensor scale, Tensor? zero_point, int? dim, int block, int bits) -> Tensor"
)
_LIBRARY.define("simulate(Tensor x, float scale, int zero_point, int low, int high) -> Tensor")
_LIBRARY.define("global_pool(Tensor x) -> Tensor")
_LIBRARY.define("dynamic_matmul(Tensor x, Tensor q, Tensor scale) -> Tensor")


def _spread(values: Tensor, like: Tensor, dim: int | None, block: int) -> Tensor:
    """Scales or zero points in a shape that broadcasts against ``like``."""
    if dim is None:
        return values
    if block:
        return values.repeat_interleave(block, dim).narrow(dim, 0, like.shape[dim])
    return values.reshape([-1] + [1] * (like.dim() - 1 - dim % like.dim()))


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, dim: int | None) -> Tensor:
    limits = torch.iinfo(zero_point.dtype)
    steps = torch.round(x / _spread(scale, x, dim, 0)) + _spread(zero_point, x, dim, 0)
    return steps.clamp(limits.min, limits.max).to(zero_point.dtype)


def _dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, dim: int | None, block: int, bits: int
) -> Tensor:
    steps = q.to(scale.dtype)
    if zero_point is not None:
        steps = steps - _spread(zero_point.to(scale.dtype), q, dim, block)
    return steps * _spread(scale, q, dim, block)


def _simulate(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    return ((torch.round(x / scale) + zero_point).clamp(low, high) - zero_point) * scale


def _global_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _dynamic_matmul(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = torch.where(high > low, (high - low) / 255, 1.0)
    zero_point = torch.round(-low / step).clamp(0, 255)
    steps = (torch.round(x / step) + zero_point).clamp(0, 255) - zero_point
    return (steps @ q.to(x.dtype)) * (step * scale.to(x.dtype))


for _name, _function in (
    ("quantize", _quantize),
    ("dequantize", _dequantize),
    ("simulate", _simulate),
    ("global_pool", _global_pool),
    ("dynamic_matmul", _dynamic_matmul),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"normfold::{_name}", _function, lib=_LIBRARY)

quantize = torch.ops.normfold.quantize.default
dequantize = torch.ops.normfold.dequantize.default
simulate = torch.ops.normfold.simulate.default
global_pool = torch.ops.normfold.global_pool.default
dynamic_matmul = torch.ops.normfold.dynamic_matmul.default
