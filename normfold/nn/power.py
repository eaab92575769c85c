"""PowerNorm: division by a running second moment, after an online scaling of groups of features.

In training, with t the forwards so far, q the mean of x^2 over tokens, phi the running one:

    forward    v = q where t <= warmup, else phi before this step;   y = w x / sqrt(v + eps) + b
               phi = phi + (q - phi) / t where t <= warmup, else alpha_f phi + (1 - alpha_f) q
    backward   psi = (1 - alpha_b) ema_gz,   dL/dx = (g - psi z) / sqrt(q + eps)
               ema_gz = ema_gz + mean((g - psi z) z)

with g and z as in `normfold.nn.uncentred`. Shen et al., ICML 2020, arXiv 2003.07845. One deviation: the
released code updates phi twice during warm-up, by the cumulative average and then by the moving one as well;
here phi is the average of the warm-up's q and the moving average takes over after it. As published, dL/dx
divides by the batch's q even where the forward divided by phi.

The scaling of groups divides each token's C / G features by their root mean square. It is per token: it cannot
be folded and stays in the deployed network. Without it a user's training diverged after 1000 steps (powernorm,
issue 9).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.errors import UsageError
from normfold.nn.statistics import wide
from normfold.nn.uncentred import Call, UncentredNorm


class GroupScaling(nn.Module):
    """``x / sqrt(mean(x^2) + eps)`` over each of ``groups`` groups of neighbouring features, per token.

    Args:
        features: C, along ``axis``.
        groups: a divisor of C.
    """

    def __init__(self, features: int, groups: int, eps: float = 1e-5, *, axis: int = -1) -> None:
        super().__init__()
        if groups < 1 or features % groups:
            raise UsageError(f"{features} features do not divide into {groups} groups")
        self.features, self.groups, self.eps, self.axis = features, groups, eps, axis

    def forward(self, x: Tensor) -> Tensor:
        width = self.features // self.groups
        parts = x.movedim(self.axis, -1).unflatten(-1, (self.groups, width))
        return F.rms_norm(parts, (width,), eps=self.eps).flatten(-2).movedim(-1, self.axis)

    def extra_repr(self) -> str:
        return f"{self.features}, groups={self.groups}, eps={self.eps}, axis={self.axis}"


class PowerNorm(UncentredNorm):
    """PowerNorm; in eval mode an affine of the scaled input, or of the input itself without groups.

    Args:
        groups: of the scaling, in scripts the number of heads; None for none.
        warmup: forwards that divide by their own second moment.
        alpha_f: weight of the old phi.
        alpha_b: 1 minus the gain of the correction in backward; raise it where ``ema_gz`` diverges.

    The moments that `start` takes are those of the scaled input.
    """

    kind: ClassVar[str] = "powernorm"
    preset: ClassVar[bool] = False

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        groups: int | None = None,
        warmup: int = 10000,
        alpha_f: float = 0.9,
        alpha_b: float = 0.9,
        axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            features,
            eps,
            warmup=warmup,
            axis=axis,
            momentum=1 - alpha_f,
            device=device,
            dtype=dtype,
        )
        self.alpha_b = alpha_b
        self.scaling = None if groups is None else GroupScaling(features, groups, eps, axis=axis)

    def prepare(self, x: Tensor) -> Tensor:
        if self.scaling is None:
            return x
        scaled: Tensor = self.scaling(x)
        return scaled

    def choose(self, square: Tensor) -> Call:
        self.iters.add_(1)
        warms = self.iters <= self.warmup
        phi = wide(self.running_var)
        weight = torch.where(warms, 1 / self.iters.to(phi.dtype), self.momentum)
        variance = torch.where(warms, square, phi)
        self.running_var.copy_(phi + (square - phi) * weight)
        return Call(variance, square, torch.ones_like(square))

    @torch.no_grad()
    def absorb(self, gz: Tensor, call: Call) -> Tensor:
        psi = (1 - self.alpha_b) * wide(self.ema_gz)
        # the mean of z^2 is q / (v + eps)
        change = gz - psi * call.divisor / (call.variance + self.eps)
        self.ema_gz.add_(torch.where(change.isfinite().all(), change, 0.0))
        return psi

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, warmup={self.warmup}, alpha_b={self.alpha_b}"
