"""``y = x * scale + shift`` with trained constants: what every norm of this package becomes in the end.

As a norm of its own it has no statistics at all, needs a start (the least-squares fit to the norm that it
replaces) and was the most accurate replacement after a short distillation (`research/ln-to-affine.md`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from normfold.nn.base import OfflineNorm
from normfold.nn.moments import Moments
from normfold.nn.statistics import wide


class Affine(OfflineNorm):
    """Scale and shift per feature, the same function in both modes; see `OfflineNorm` for ``axis``."""

    kind: ClassVar[str] = "affine"

    def __init__(
        self,
        features: int,
        *,
        axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, axis=axis)
        self.scale = nn.Parameter(torch.ones(features, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))

    def affine(self) -> tuple[Tensor, Tensor]:
        return wide(self.scale), wide(self.shift)

    @torch.no_grad()
    def start(self, scale: Tensor, shift: Tensor, mean: Tensor, mean_square: Tensor) -> None:
        self.scale.copy_(scale)
        self.shift.copy_(shift)

    def adopt(self, moments: Moments) -> None:
        """Nothing to adopt."""

    def training_forward(self, x: Tensor) -> Tensor:
        return self.evaluate(x)

    def extra_repr(self) -> str:
        return f"{self.features}, axis={self.axis}"
