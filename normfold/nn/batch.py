"""Batch normalisation over tokens: BN, RepBN = BN + eta x, and PRepBN, which gets there from LayerNorm.

    BN      y = g (x - mu) / s + b,                 s = sqrt(var + eps)
    RepBN   y = BN(x) + eta x
    PRepBN  y = mix LN(x) + (1 - mix) RepBN(x)      training; RepBN alone in eval mode

RepBN is an affine with scale ``g / s + eta`` and shift ``b - mu g / s``, hence one BatchNorm with gain ``g +
eta s`` and bias ``b + eta mu``. Statistics are per channel over all tokens of all ranks; the running variance
is the unbiased one, as torch's. SLAB (Guo et al., ICML 2024, arXiv 2405.11582), where ``mix`` falls from 1 to
0.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.nn.base import OfflineNorm, statistics_dtype
from normfold.nn.moments import Moments
from normfold.nn.standardise import standardise
from normfold.nn.statistics import token_mean, wide

# An opaque op, so that a compiled block still tells a recomputation from a first run.
_LIBRARY = torch.library.Library("normfold", "FRAGMENT")
_LIBRARY.define(
    "batch_statistics_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor variance, "
    "float momentum) -> ()"
)


def _update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, momentum: float
) -> None:
    if torch._C._current_graph_task_id() == -1:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_(variance.to(running_var.dtype), momentum)


_LIBRARY.impl("batch_statistics_", _update, "CompositeExplicitAutograd")
_LIBRARY.impl("batch_statistics_", lambda *_: None, "Meta")


class BatchNorm(OfflineNorm):
    """BatchNorm over tokens, for features along any axis, masks and several ranks.

    Args: see `OfflineNorm`.

    Raises (in training):
        UsageError: fewer than two tokens, another number of features, a mask that does not fit.
    """

    kind: ClassVar[str] = "bn"

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        axis: int = -1,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, eps, axis=axis, momentum=momentum)
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        wider = statistics_dtype(dtype)
        self.register_buffer("running_mean", torch.zeros(features, device=device, dtype=wider))
        self.register_buffer("running_var", torch.ones(features, device=device, dtype=wider))

    def extra_scale(self) -> Tensor | None:
        """What RepBN adds to the scale, (1,)."""
        return None

    def compose(self, gain: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, from the weight over the standard deviation and the mean, (C,) each."""
        extra = self.extra_scale()
        return (gain if extra is None else gain + extra), wide(self.bias) - mean * gain

    def affine(self) -> tuple[Tensor, Tensor]:
        inv = torch.rsqrt(wide(self.running_var) + self.eps)
        return self.compose(wide(self.weight) * inv, wide(self.running_mean))

    @torch.no_grad()
    def start(self, scale: Tensor, shift: Tensor, mean: Tensor, mean_square: Tensor) -> None:
        mean, scale, shift = mean.double(), scale.double(), shift.double()
        self.running_mean.copy_(mean)
        self.running_var.copy_((mean_square.double() - mean.square()).clamp(min=0))
        extra = self.extra_scale()
        gain = scale if extra is None else scale - extra.double()
        # from the statistics as they are stored, so that their rounding cancels
        self.weight.copy_(gain * torch.sqrt(self.running_var.double() + self.eps))
        self.bias.copy_(shift + gain * self.running_mean.double())

    @torch.no_grad()
    def adopt(self, moments: Moments) -> None:
        self.running_mean.copy_(moments.mean)
        self.running_var.copy_(moments.variance * moments.count / (moments.count - 1))

    def normalise(self, x: Tensor, mask: Tensor | None, seen: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            mean, count = token_mean(wide(x), mask)
            variance, _ = token_mean((wide(x) - mean).square_(), mask)
        if self.recorder is not None:
            self.recorder.update(x, mask=mask)
        else:
            with torch.no_grad():
                torch.ops.normfold.batch_statistics_(
                    self.running_mean,
                    self.running_var,
                    mean,
                    variance * (count / (count - 1)),
                    self.momentum,
                )
        inv = torch.rsqrt(variance + self.eps)
        gain = wide(self.weight) * inv
        return standardise(x, *self.compose(gain, mean), gain, mean, inv, count, mask), None


class RepBN(BatchNorm):
    """BatchNorm plus ``eta`` times the input, eta one learned scalar per norm.

    Args:
        eta: where it starts. The paper starts at 1 and trains from scratch; on a pretrained network 1 explodes,
            because its residual stream is large and nothing in it expects a second copy.
    """

    kind: ClassVar[str] = "repbn"

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        eta: float = 0.0,
        axis: int = -1,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, eps, axis=axis, momentum=momentum, device=device, dtype=dtype)
        self.eta = nn.Parameter(torch.full((1,), eta, device=device, dtype=dtype))

    def extra_scale(self) -> Tensor:
        return wide(self.eta)


class PRepBN(RepBN):
    """From LayerNorm to RepBN while training; a RepBN in eval mode.

    ``mix``, a 0-dim buffer, is the part of LayerNorm: 1 until a schedule (`normfold.nn.Progressive`) writes it.
    Both branches run and get gradients at every value, so that no rank misses a parameter. Switching to eval
    mode while ``mix`` is not 0 warns once: what is evaluated is not what was trained.

    Args:
        ln_eps: eps of the LayerNorm, whose gain and bias are ``ln_weight`` and ``ln_bias``.
    """

    kind: ClassVar[str] = "prepbn"
    transition: ClassVar[float] = 0.5

    mix: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        ln_eps: float = 1e-5,
        eta: float = 0.0,
        axis: int = -1,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            features, eps, eta=eta, axis=axis, momentum=momentum, device=device, dtype=dtype
        )
        self.ln_eps = ln_eps
        self.ln_weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))
        self.ln_bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        self.register_buffer("mix", torch.ones((), device=device, dtype=statistics_dtype(dtype)))
        self._warned = False

    def normalise(self, x: Tensor, mask: Tensor | None, seen: Any) -> tuple[Tensor, Any]:
        new, seen = super().normalise(x, mask, seen)
        if self.recorder is not None:  # statistics are for eval mode, which has no LayerNorm
            return new, seen
        x = x.to(new.dtype)
        gain, bias = self.ln_weight.to(x.dtype), self.ln_bias.to(x.dtype)
        old = F.layer_norm(x, (self.features,), gain, bias, self.ln_eps)
        # a copy: the next forward may be given another mix, or DDP's, before the backward of this one
        mix = self.mix.to(new.dtype, copy=True)
        return torch.lerp(new, old, mix), seen

    def train(self, mode: bool = True) -> PRepBN:
        if self.training and not mode and not self._warned and not self.mix.is_meta:
            mix = float(self.mix)
            self._warned = mix > 0
            if mix > 0:
                warnings.warn(
                    f"eval mode of a PRepBN that is still {mix:.0%} LayerNorm in training: "
                    "it runs as RepBN alone, so what is measured now is not what was trained",
                    UserWarning,
                    stacklevel=2,
                )
        super().train(mode)
        return self
