"""Any norm on its way from the LayerNorm that it replaces.

    y = mix LN(x) + (1 - mix) norm(x)   in training,    y = norm(x)   in eval mode

What PRepBN is to RepBN, for the other kinds: the norm itself stays what it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.nn.base import OfflineNorm


class Blended(nn.Module):
    """A norm and the LayerNorm in its place, trained together.

    Args:
        norm: with its features along the last axis.
        weight, bias: gain and bias of the LayerNorm, (C,).
        eps: of the LayerNorm.

    ``mix``, a 0-dim buffer, is the part of the LayerNorm: `normfold.nn.Progressive` writes it.
    """

    mix: Tensor

    def __init__(self, norm: OfflineNorm, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.norm, self.eps = norm, eps
        self.ln_weight, self.ln_bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.register_buffer("mix", torch.zeros((), device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.norm(x)
        if not self.training or self.norm.recorder is not None:  # statistics are for eval mode
            return new
        old = F.layer_norm(x, (self.norm.features,), self.ln_weight, self.ln_bias, self.eps)
        return torch.lerp(new, old.to(new.dtype), self.mix.to(new.dtype))
