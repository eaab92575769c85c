"""Norms of activations, as their papers have them at inference; a name is that of the paper's method."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _shaped(vector: Tensor, x: Tensor) -> Tensor:
    """A vector per channel beside a tensor whose channels are the second axis."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))


class GhostBatchNorm(nn.BatchNorm2d):
    """Statistics of small parts of the batch in training, the running ones at inference (Hoffer et al. 2017)."""

    def __init__(self, features: int, size: int = 2) -> None:
        super().__init__(features)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return torch.cat(
                [super(GhostBatchNorm, self).forward(part) for part in x.split(self.size)]
            )
        return super().forward(x)


class Affine(nn.Module):
    """Gain and bias of a norm below, and a running mean and variance."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
        )
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.eps = eps

    def out(self, x: Tensor) -> Tensor:
        return x * _shaped(self.weight, x) + _shaped(self.bias, x)


class EstimatedBatchNorm(Affine):
    """x normalised by estimated statistics in training and at inference (EstBN, Huang et al. 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return self.out((x - _shaped(mean, x)) / torch.sqrt(_shaped(var, x) + self.eps))


class OnlineNorm(Affine):
    """Streaming statistics, then a layer scaling over all features (Chiley et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x - _shaped(self.running_mean, x)) * torch.rsqrt(
            _shaped(self.running_var, x) + self.eps
        )
        y = self.out(y)
        scale = torch.rsqrt(y.square().mean(tuple(range(1, y.dim())), keepdim=True) + self.eps)
        return y * scale


class PowerNorm(Affine):
    """GroupScaling, then x by the root of a running mean square (PowerNorm, Shen et al. 2020)."""

    def __init__(self, features: int, groups: int = 2) -> None:
        super().__init__(features)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        scale = torch.sqrt(parts.square().mean(-1, keepdim=True) + self.eps)
        x = (parts / scale).flatten(-2)
        return x / torch.sqrt(self.running_var + self.eps) * self.weight + self.bias


class BatchChannelNorm(nn.Module):
    """A BatchNorm, then channels normalised in groups (BCN, Qiao et al. 2019)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.batch, self.channel = nn.BatchNorm2d(features), nn.GroupNorm(2, features)

    def forward(self, x: Tensor) -> Any:
        return self.channel(self.batch(x))


class UnifiedNorm(nn.Module):
    """w x / sigma + b with a constant sigma at inference (UN, Yang et al. 2022)."""

    running_var: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
        )
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / torch.sqrt(self.running_var + 1e-5)) + self.bias


class RepBatchNorm(nn.Module):
    """BN(x) + eta x (Guo et al. 2024, SLAB; what PRepBN is at inference)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bn, self.eta = nn.BatchNorm1d(features), nn.Parameter(torch.full((1,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y: Tensor = (self.bn(x) + self.eta * x).transpose(1, 2)
        return y


class EvoNormB0(Affine):
    """x / max(sqrt(running var), v x + instance deviation) (Liu et al. 2020)."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.v = nn.Parameter(torch.full((features,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        own = torch.sqrt(x.var((2, 3), unbiased=False, keepdim=True) + self.eps)
        batch = torch.sqrt(_shaped(self.running_var, x) + self.eps)
        return self.out(x / torch.maximum(batch, _shaped(self.v, x) * x + own))


class EvoNormB1(Affine):
    """x / max(sqrt(running var), (x + 1) sqrt(instance square))."""

    def forward(self, x: Tensor) -> Tensor:
        own = torch.sqrt(x.square().mean((2, 3), keepdim=True) + self.eps)
        batch = torch.sqrt(_shaped(self.running_var, x) + self.eps)
        return self.out(x / torch.maximum(batch, (x + 1) * own))


class EvoNormB2(Affine):
    """x / max(sqrt(running var), sqrt(instance square) - x)."""

    def forward(self, x: Tensor) -> Tensor:
        own = torch.sqrt(x.square().mean((2, 3), keepdim=True) + self.eps)
        batch = torch.sqrt(_shaped(self.running_var, x) + self.eps)
        return self.out(x / torch.maximum(batch, own - x))


class EvoNormS0(Affine):
    """x sigmoid(v x) / group deviation."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.v = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (2, -1))
        deviation = torch.sqrt(parts.var((2, 3, 4), unbiased=False, keepdim=True) + self.eps)
        deviation = deviation.expand_as(parts).flatten(1, 2)
        return self.out(x * torch.sigmoid(_shaped(self.v, x) * x) / deviation)


class InstanceBatchNorm(nn.Module):
    """Half of the channels by instance, half by batch (IBN-a, Pan et al. 2018)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = features // 2
        self.instance = nn.InstanceNorm2d(self.first, affine=True)
        self.batch = nn.BatchNorm2d(features - self.first)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [self.first, x.shape[1] - self.first], 1)
        return torch.cat([self.instance(first), self.batch(second)], 1)


class RegionNorm(Affine):
    """Statistics over the pixels that an input mask chooses (Yu et al. 2020)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum((2, 3), keepdim=True) + self.eps
        mean = (x * mask).sum((2, 3), keepdim=True) / count
        var = ((x - mean).square() * mask).sum((2, 3), keepdim=True) / count
        return self.out((x - mean) / torch.sqrt(var + self.eps) * mask)


class ConditionalBatchNorm(nn.Module):
    """A BatchNorm whose gain and bias an input decides (de Vries et al. 2017)."""

    def __init__(self, features: int, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(features, affine=False)
        self.gain, self.bias = nn.Linear(inputs, features), nn.Linear(inputs, features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = (part(condition)[:, :, None, None] for part in (self.gain, self.bias))
        y: Tensor = self.bn(x) * (1 + gain) + bias
        return y


class AdaptiveGroupNorm(nn.Module):
    """AdaGN of diffusion models (Dhariwal and Nichol 2021)."""

    def __init__(self, features: int, inputs: int) -> None:
        super().__init__()
        self.norm, self.of = nn.GroupNorm(2, features), nn.Linear(inputs, 2 * features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.of(condition)[:, :, None, None].chunk(2, 1)
        y: Tensor = self.norm(x) * (1 + gain) + bias
        return y


class RootMeanSquare(nn.Module):
    """RMSNorms as they are written by hand."""

    def __init__(self, features: int, how: str = "plain") -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.ones(features)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "eps outside the root":
            return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6) * self.weight
        wide = x.float() if self.how == "float32" else x
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        gain = 1 + self.weight if self.how == "1 + w" else self.weight
        return y.type_as(x) * gain


class DynamicTanh(nn.Module):
    """gamma tanh(alpha x) + beta (DyT, Zhu et al. 2025)."""

    def __init__(self, features: int, function: Any = torch.tanh, shift: bool = False) -> None:
        super().__init__()
        self.alpha, self.function = nn.Parameter(torch.full((1,), 0.6)), function
        self.shift = nn.Parameter(torch.full((1,), 0.2)) if shift else None
        self.weight, self.bias = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.alpha * x if self.shift is None else self.alpha * x + self.shift
        y: Tensor = self.weight * self.function(inner) + self.bias
        return y


class AveragedAffine(nn.Module):
    """(x - mean(x)) / a constant, g and b (TaperNorm at its end, FakeLN: arXiv 2602.10408, 2507.02559)."""

    running_std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
        )
        self.register_buffer("running_std", torch.full((1,), 1.7))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / self.running_std * self.weight + self.bias


class Poincare(nn.Module):
    """A norm in hyperbolic space: the distance from the origin depends on the input (Poincaré ResNet, 2023)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return F.normalize(x, dim=-1) * torch.tanh(length) * self.weight
