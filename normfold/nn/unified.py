"""Unified normalisation: the geometric mean of the last M batches' second moments instead of one batch's.

In training, with t the forwards so far, q the mean of x^2 over tokens and W, (M, C), the last M values of it:

    1.  V = unbiased variance of all of sqrt(W), before q;   W[t mod M] = q
    2.  outlier: some channel has AM(W) - GM(W) > M V;   then W[t mod M] = running_var, and this step is skipped
    3.  v = GM(W), or q where t <= M, t < warmup or skipped
    4.  r = sqrt(v + eps) / sqrt(running_var + eps) in [1/5, 5], or 1 where t <= max(1000, warmup) or skipped
    5.  y = w x / sqrt(v + eps) + b;   running_var = momentum running_var + (1 - momentum) v

and in backward, with h the mean of g z (see `normfold.nn.uncentred`) and H, (M, C), the last M values of it:

    6.  H[t mod M] = h, or ema_gz where skipped
    7.  p = mean of H, or h where t <= M, t < warmup or skipped;   ema_gz = momentum ema_gz + (1 - momentum) p
    8.  psi = ema_gz, or p where skipped, or h where t <= M or t < warmup;   dL/dx divides by sqrt(v + eps)

For one window AM - GM <= M V is a theorem, so step 2 fires only where the new batch contradicts the history,
hence V before q. Yang et al., ACM MM 2022, arXiv 2208.01313, with the released code's constants. Three deviations:
step 2 waits for a full window (t > M; the released code compares with its zeros where warmup <= M), the mask
holds in backward too, and so does the warm-up: its gradient is the true one. The released code uses ema_gz, which
begins at zero, from the first step on; the GPT of the examples, from scratch, then met a gradient of 88 and came
to a loss of 2.61 in 500 steps instead of 2.08.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from normfold.errors import UsageError
from normfold.nn.statistics import wide
from normfold.nn.uncentred import Call, UncentredNorm

_GATED_FROM = 1000
_WIDEST_GATE = 5.0


@dataclass(frozen=True)
class _Step(Call):
    skip: Tensor  # bool, 0-dim
    step: Tensor  # t, 0-dim


class UN(UncentredNorm):
    """Unified normalisation.

    Args:
        window: M, at least 2.
        warmup: forwards until statistics are smoothed; 4000 is the released code's, for runs of 100,000 updates.
        momentum: weight of the *old* statistics, the other way round than torch's.
        outlier_filtration: skip smoothing where a batch contradicts the window; for images. The paper leaves it
            off for text.
        exact_warmup: False takes ema_gz during the warm-up too, as the released code does.

    All state is in buffers and no decision waits for the device. Before fine-tuning on something else call
    ``norm.iters.zero_()``, or there is no warm-up.
    """

    kind: ClassVar[str] = "un"

    buffer_x2: Tensor
    buffer_gz: Tensor
    skip_counter: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        window: int = 4,
        warmup: int = 4000,
        momentum: float = 0.9,
        outlier_filtration: bool = True,
        exact_warmup: bool = True,
        axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            features, eps, warmup=warmup, axis=axis, momentum=momentum, device=device, dtype=dtype
        )
        if window < 2:
            raise UsageError("the window of UN holds two batches at least", found=f"{window}")
        self.window, self.outlier_filtration = window, outlier_filtration
        self.exact_warmup = exact_warmup
        empty = self.running_var.new_zeros(window, features)
        self.register_buffer("buffer_x2", empty)
        self.register_buffer("buffer_gz", empty.clone())
        self.register_buffer("skip_counter", torch.zeros_like(self.iters))

    def _slot(self, step: Tensor) -> Tensor:
        """(M, 1), True at the row of the window that belongs to this step."""
        rows = torch.arange(self.window, device=step.device)
        return (rows == step % self.window).unsqueeze(1)

    def _smooths(self, step: Tensor) -> Tensor:
        return (step > self.window) & (step >= self.warmup)

    def choose(self, square: Tensor) -> Call:
        self.iters.add_(1)
        step = self.iters.clone()
        slot, smooths = self._slot(step), self._smooths(step)
        window, running = wide(self.buffer_x2), wide(self.running_var)
        spread = window.sqrt().var()
        window = torch.where(slot, square, window)
        geometric = window.log().mean(0).exp()
        contradicts = (window.mean(0) - geometric > self.window * spread).any()
        skip = smooths & contradicts & self.outlier_filtration
        variance = torch.where(smooths & ~skip, geometric, square)
        ratio = torch.sqrt((variance + self.eps) / (running + self.eps))
        gated = (step > max(_GATED_FROM, self.warmup)) & ~skip
        gate = torch.where(gated, ratio.clamp(1 / _WIDEST_GATE, _WIDEST_GATE), 1.0)
        self.skip_counter.add_(skip)
        self.buffer_x2.copy_(torch.where(slot & skip, running, window))
        self.running_var.copy_(torch.lerp(variance, running, self.momentum))
        return _Step(variance, variance, gate, skip, step)

    @torch.no_grad()
    def absorb(self, gz: Tensor, call: Call) -> Tensor:
        assert isinstance(call, _Step)
        ema = wide(self.ema_gz)
        gz = torch.where(gz.isfinite().all(), gz, ema)
        entry = torch.where(call.skip, ema, gz)
        window = torch.where(self._slot(call.step), entry, wide(self.buffer_gz))
        smooths = self._smooths(call.step)
        smoothed = torch.where(smooths & ~call.skip, window.mean(0), gz)
        ema = torch.lerp(smoothed, ema, self.momentum)
        self.buffer_gz.copy_(window)
        self.ema_gz.copy_(ema)
        psi = torch.where(call.skip, smoothed, ema)
        return torch.where(smooths, psi, gz) if self.exact_warmup else psi

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, warmup={self.warmup}"
