"""``y = x * scale + shift`` whose scale and shift hold the statistics of x, and its whole derivative.

    scale = gain + constants,   shift = constants - mean gain,   gain = w inv,   inv = (var + eps)^(-1/2)
    dL/dx = scale dL/dy - gain S / n - gain inv^2 (x - mean) D / n,   S = sum(dL/dy),   D = sum((x - mean) dL/dy)

S and D are over the tokens of all ranks, padded ones included: their outputs depend on the statistics too. The
two terms with S and D exist at valid tokens only: the statistics do not depend on the others. The gradients of
scale and shift are those of this rank, as for any other parameter. One tensor of the size of x is saved, x
itself; autograd of the same formula saves four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normfold.nn.statistics import over_ranks, token_sum, wide


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        gain: Tensor,
        mean: Tensor,
        inv: Tensor,
        count: Tensor | int,
        mask: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, gain, mean, inv)
        ctx.count, ctx.mask = count, mask
        return torch.addcmul(shift, wide(x), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, gain, mean, inv = ctx.saved_tensors
        own = torch.stack([token_sum(dy), token_sum((wide(x) - mean).mul_(dy))])
        s, d = over_ranks(own) / ctx.count
        slope = -gain * inv.square() * d
        dx = torch.addcmul(-gain * s - slope * mean, wide(x), slope)
        if ctx.mask is not None:
            dx = torch.where(ctx.mask.unsqueeze(-1), dx, 0.0)
        dx.addcmul_(dy, scale)
        return dx.to(x.dtype), own[1] + mean * own[0], own[0], *(None,) * 5


def standardise(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    gain: Tensor,
    mean: Tensor,
    inv: Tensor,
    count: Tensor | int,
    mask: Tensor | None,
) -> Tensor:
    """``x * scale + shift``, differentiable in x through its own statistics too.

    Args:
        x: (..., C).
        scale, shift: (C,), built from ``mean`` and ``inv`` as if these were constants, float32 or wider.
        gain: (C,), the part of the scale that is proportional to ``inv``.
        mean, inv: (C,), mean and inverse standard deviation of x over valid tokens of all ranks.
        count: the number of these.
        mask: (...), True at valid tokens; None when all are.

    Returns:
        (..., C), float32 or wider.
    """
    y: Tensor = _Standardise.apply(  # type: ignore[no-untyped-call]
        x, scale, shift, gain.detach(), mean, inv, count, mask
    )
    return y
