"""Norms of every kind with parameters and state that are nowhere their defaults, and steps through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normfold.nn import UN, Affine, BatchNorm, OfflineNorm, PowerNorm, PRepBN, RepBN

KINDS: dict[str, Callable[..., OfflineNorm]] = {
    "bn": BatchNorm,
    "repbn": lambda features, **options: RepBN(features, eta=0.7, **options),
    "prepbn": lambda features, **options: PRepBN(features, eta=0.7, **options),
    "un": lambda features, **options: UN(features, window=2, warmup=2, **options),
    "powernorm": lambda features, **options: PowerNorm(features, warmup=2, **options),
    "powernorm groups": lambda features, **options: PowerNorm(
        features, warmup=2, groups=2, **options
    ),
    "affine": Affine,
}
STATISTICAL = [name for name in KINDS if name != "affine"]


def norm_of(kind: str, features: int = 4, **options: Any) -> OfflineNorm:
    """A norm in training mode with random parameters, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1)
    norm = KINDS[kind](features, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in norm.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.4 * noise)
    if isinstance(norm, PRepBN):
        norm.mix.fill_(0.3)
    return norm


def state(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and gradients, detached; a gradient that is missing is missing here too."""
    found = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[f"{name}.grad"] = parameter.grad.clone()
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """The same names, and values within ``tolerance``, absolute and relative."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.allclose(found[name], value, rtol=tolerance, atol=tolerance)
        assert same, f"{name}: {found[name]} is not {value}"


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Float64 noise whose channels (last axis) differ in mean and scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    ramp = torch.arange(shape[-1], dtype=torch.float64)
    return x * (1 + ramp) + 2 - ramp


def weighted_sum(y: Tensor) -> Tensor:
    """A loss whose gradient differs at every element."""
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).sin()).sum()
