"""Normalised weights: layers whose weight is computed from parameters alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Standardised(nn.Conv2d):
    """Weight standardisation, in the conventions of its users (Qiao et al. 2019; BiT; timm)."""

    def __init__(self, inputs: int, outputs: int, how: str = "std + eps") -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        w = self.weight
        if self.how == "std + eps":
            w = w - w.mean((1, 2, 3), keepdim=True)
            std = w.view(w.shape[0], -1).std(1).view(-1, 1, 1, 1) + 1e-5
            return self._conv_forward(x, w / std, self.bias)
        if self.how == "var + eps":
            var, mean = torch.var_mean(w, (1, 2, 3), keepdim=True, unbiased=False)
            return self._conv_forward(x, (w - mean) / torch.sqrt(var + 1e-10), self.bias)
        w = F.batch_norm(
            w.reshape(1, w.shape[0], -1), None, None, training=True, momentum=0.0, eps=1e-6
        )
        return self._conv_forward(x, w.reshape_as(self.weight), self.bias)


class ScaledStandardised(nn.Conv2d):
    """gain (w - mean) / sqrt(max(var fan_in, eps)) (NFNet, Brock et al. 2021; FedWon has no gain)."""

    def __init__(self, inputs: int, outputs: int, gains: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1)) if gains else None

    def forward(self, x: Tensor) -> Any:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        scale = torch.rsqrt(torch.clamp(var * self.weight[0].numel(), min=1e-4))
        scale = scale if self.gain is None else scale * self.gain
        return self._conv_forward(x, (self.weight - mean) * scale, self.bias)


class Conditioned(nn.Module):
    """A preconditioner times the weight: rows of equal length (weight conditioning, Saratchandran et al. 2024)."""

    def forward(self, weight: Tensor) -> Any:
        return weight / weight.norm(dim=1, keepdim=True)


class LowRank(nn.Module):
    """W + s B A (LoRA, Hu et al. 2021), computed as two paths."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.a, self.b = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + 0.5 * self.b(self.a(x))
        return y


class Decomposed(nn.Module):
    """m (W + B A) / |W + B A| by rows (DoRA, Liu et al. 2024)."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.zeros(outputs)),
        )
        self.a, self.b = (
            nn.Parameter(torch.randn(rank, inputs)),
            nn.Parameter(torch.randn(outputs, rank)),
        )
        self.magnitude = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight + self.b @ self.a
        return F.linear(x, w * (self.magnitude / w.norm(dim=1)).unsqueeze(1), self.bias)


class Cosine(nn.Module):
    """Cosines between a feature and class vectors, scaled (ArcFace, Deng et al. 2019)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return 30.0 * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class Binary(nn.Linear):
    """A weight of two values with a scale for each row (BiPFT and others)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean(1, keepdim=True)
        return F.linear(x, torch.sign(self.weight) * scale, self.bias)


class BinaryConv(nn.Conv2d):
    """A kernel of two values with a scale for each output (MST, BiPer, ReSTE at inference)."""

    def forward(self, x: Tensor) -> Any:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, torch.sign(self.weight) * scale, self.bias)


class Equiangular(nn.Module):
    """Cosines with fixed vectors of equal angles (Equiangular Basis Vectors, Shen et al. 2023)."""

    basis: Tensor

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(classes, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.basis, dim=-1)) / 0.07


class Transformed(nn.Module):
    """An embedding in the basis of an older one: an affine behind the last layer (BT^2, Zhou et al. 2023)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)
        self.basis = nn.Parameter(torch.randn(outputs, outputs))
        self.shift = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.embed(x)) @ self.basis.t() + self.shift
        return y


def sparse(layer: nn.Linear) -> nn.Linear:
    """Nine of ten weights are 0, without a pattern (AutoSparse, sparse Bayesian networks)."""
    layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    return layer


def conditioned(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Conditioned())
    return layer
