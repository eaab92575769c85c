"""The norms once more, from the papers' formulas, in float64 with plain Python control flow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps) ** 0.5 * weight + bias


def batch_norm(x: Tensor, valid: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (T, C), statistics over the rows where ``valid``, differentiable."""
    rows = x[valid]
    mean = rows.mean(0)
    variance = ((rows - mean) ** 2).mean(0)
    return (x - mean) / (variance + eps) ** 0.5 * weight + bias


def group_scaling(x: Tensor, groups: int, eps: float) -> Tensor:
    parts = x.reshape(len(x), groups, -1)
    return (parts / ((parts**2).mean(-1, keepdim=True) + eps) ** 0.5).reshape(x.shape)


@dataclass
class Unified:
    """UN over rows (T, C): one `step` is a forward and its backward."""

    weight: Tensor
    bias: Tensor
    window: int
    warmup: int
    alpha: float
    filters: bool
    exact: bool = True
    eps: float = 1e-5
    t: int = 0
    skips: int = 0
    gates: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        channels = len(self.weight)
        self.running = torch.ones(channels, dtype=torch.float64)
        self.ema = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(self.window, channels, dtype=torch.float64)
        self.corrections = torch.zeros(self.window, channels, dtype=torch.float64)

    def step(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.t += 1
        slot = self.t % self.window
        q = (x**2).mean(0)
        history = self.squares**0.5
        spread = ((history - history.mean()) ** 2).sum() / (history.numel() - 1)
        self.squares[slot] = q
        arithmetic = self.squares.sum(0) / self.window
        geometric = self.squares.prod(0) ** (1 / self.window)
        full = self.t > self.window and self.t >= self.warmup
        skip = self.filters and full and bool((arithmetic - geometric > self.window * spread).any())
        if skip:
            self.skips += 1
            self.squares[slot] = self.running
        variance = geometric if full and not skip else q
        gate = torch.ones_like(q)
        if self.t > max(1000, self.warmup) and not skip:
            ratio = (variance + self.eps) ** 0.5 / (self.running + self.eps) ** 0.5
            gate = ratio.clamp(0.2, 5.0)
        self.gates.append(gate)
        self.running = self.alpha * self.running + (1 - self.alpha) * variance
        z = x / (variance + self.eps) ** 0.5

        g = dy * self.weight * gate
        h = (g * z).mean(0)
        self.corrections[slot] = self.ema if skip else h
        smoothed = self.corrections.mean(0) if full and not skip else h
        self.ema = self.alpha * self.ema + (1 - self.alpha) * smoothed
        psi = smoothed if skip else self.ema
        if self.exact and not full:
            psi = h
        dx = (g - psi * z) / (variance + self.eps) ** 0.5
        return self.weight * z + self.bias, dx, (dy * gate * z).sum(0), dy.sum(0)


@dataclass
class Power:
    """PowerNorm over rows (T, C), behind the group scaling."""

    weight: Tensor
    bias: Tensor
    warmup: int
    alpha_f: float
    alpha_b: float
    eps: float = 1e-5
    t: int = 0

    def __post_init__(self) -> None:
        self.phi = torch.ones(len(self.weight), dtype=torch.float64)
        self.ema = torch.zeros(len(self.weight), dtype=torch.float64)

    def step(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.t += 1
        q = (x**2).mean(0)
        if self.t <= self.warmup:
            variance = q
            self.phi = self.phi * (self.t - 1) / self.t + q / self.t
        else:
            variance = self.phi
            self.phi = self.alpha_f * self.phi + (1 - self.alpha_f) * q
        z = x / (variance + self.eps) ** 0.5
        g = dy * self.weight
        corrected = g - (1 - self.alpha_b) * self.ema * z
        self.ema = self.ema + (corrected * z).mean(0)
        dx = corrected / (q + self.eps) ** 0.5
        return self.weight * z + self.bias, dx, (dy * z).sum(0), dy.sum(0)
