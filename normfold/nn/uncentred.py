"""Norms by the second moment about zero, with a backward of their own: what UN and PowerNorm share.

    forward    z = x / sqrt(v + eps),    y = w z + b
    backward   g = r w dL/dy,    dL/dx = (g - psi z) / sqrt(d + eps)
               dL/dw = r sum(z dL/dy),    dL/db = sum(dL/dy)

with v, d, r chosen in forward and psi in backward, from the mean of g z over tokens and its history. In eval
mode v is the running one. Where a mask is given, the means leave padded tokens out and psi does not touch them.
(The published code of UN counts them in the mean of g z.) Statistics are over all ranks. Autograd of the true
derivative is not meant: v is a smoothed statistic, and so is psi, the term through which the statistic depends
on x.

Under a loss scale the history of g z is in its units, off by a factor for a few steps after each change of it.
A mean of g z that is not finite, such as the first ones of every GradScaler, does not enter the history, which
would never recover.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normfold.errors import UsageError
from normfold.nn.base import OfflineNorm, statistics_dtype
from normfold.nn.moments import Moments
from normfold.nn.recompute import recomputing
from normfold.nn.statistics import token_mean, token_sum, wide


@dataclass(frozen=True)
class Call:
    """What one forward chose; nothing in here is changed afterwards.

    Attributes:
        variance: v of the module docstring, (C,).
        divisor: d, (C,).
        gate: r, (C,).
    """

    variance: Tensor
    divisor: Tensor
    gate: Tensor


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: UncentredNorm,
        call: Call,
        mask: Tensor | None,
    ) -> Tensor:
        ctx.norm, ctx.call, ctx.mask = norm, call, mask
        ctx.save_for_backward(x, weight)
        scale = wide(weight) * torch.rsqrt(call.variance + norm.eps)
        return torch.addcmul(wide(bias), wide(x), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        norm, call, mask = ctx.norm, ctx.call, ctx.mask
        z = wide(x) * torch.rsqrt(call.variance + norm.eps)
        g = dy * (wide(weight) * call.gate)
        psi = norm.absorb(token_mean(g * z, mask)[0], call)
        dw = token_sum(z * dy) * call.gate
        correction = z.mul_(psi)
        if mask is not None:
            correction = torch.where(mask.unsqueeze(-1), correction, 0.0)
        dx = g.sub_(correction).mul_(torch.rsqrt(call.divisor + norm.eps))
        return dx.to(x.dtype), dw.to(weight.dtype), token_sum(dy).to(weight.dtype), *(None,) * 3


class UncentredNorm(OfflineNorm):
    """Parameters, running second moment and backward of UN and PowerNorm."""

    running_var: Tensor
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        features: int,
        eps: float,
        *,
        warmup: int,
        axis: int,
        momentum: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(features, eps, axis=axis, momentum=momentum)
        self.warmup = warmup
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        wider = statistics_dtype(dtype)
        self.register_buffer("running_var", torch.ones(features, device=device, dtype=wider))
        self.register_buffer("ema_gz", torch.zeros(features, device=device, dtype=wider))
        self.register_buffer("iters", torch.zeros((), device=device, dtype=torch.int64))

    def choose(self, square: Tensor) -> Call:
        """Take the mean square of a new batch, (C,), into the state; what its forward uses."""
        raise NotImplementedError

    def absorb(self, gz: Tensor, call: Call) -> Tensor:
        """Take the mean of g z, (C,), into the state; psi, (C,)."""
        raise NotImplementedError

    def affine(self) -> tuple[Tensor, Tensor]:
        scale = wide(self.weight) * torch.rsqrt(wide(self.running_var) + self.eps)
        return scale, wide(self.bias)

    @torch.no_grad()
    def start(self, scale: Tensor, shift: Tensor, mean: Tensor, mean_square: Tensor) -> None:
        self.running_var.copy_(mean_square)
        self.weight.copy_(scale.double() * torch.sqrt(self.running_var.double() + self.eps))
        self.bias.copy_(shift)

    @torch.no_grad()
    def adopt(self, moments: Moments) -> None:
        self.running_var.copy_(moments.mean_square)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def training_forward(self, x: Tensor) -> Tensor:
        return super().training_forward(x)

    def normalise(self, x: Tensor, mask: Tensor | None, seen: Any) -> tuple[Tensor, Any]:
        if seen is None:
            if recomputing():
                raise UsageError(
                    f"a {type(self).__name__} is recomputed that did not see this input in training mode",
                    hint="its state is that of the first run, and at most 64 forwards are remembered",
                )
            seen = self._first(x.detach(), mask)
        y = _Normalise.apply(x, self.weight, self.bias, self, seen, mask)  # type: ignore[no-untyped-call]
        return y, seen

    @torch.no_grad()
    def _first(self, x: Tensor, mask: Tensor | None) -> Call:
        square, _ = token_mean(wide(x).square(), mask)
        if self.recorder is None:
            return self.choose(square)
        self.recorder.update(x, mask=mask)
        return Call(square, square, torch.ones_like(square))
