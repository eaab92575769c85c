"""Moments per channel and their gradients, against torch's own."""

from __future__ import annotations

import pytest
import torch

from normfold.ranges.channel_moments import channel_moments


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4, 5, 6), 1), ((3, 4, 5, 6), -1), ((7, 5), 1), ((2, 9, 4), 2)]
)
def test_against_torch(shape: tuple[int, ...], dim: int, layout: torch.memory_format) -> None:
    random = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=random, dtype=torch.float64)
    if len(shape) == 4:
        x = x.contiguous(memory_format=layout)
    weights = torch.randn(2, shape[dim], generator=random, dtype=torch.float64)
    axes = [axis for axis in range(x.dim()) if axis != dim % x.dim()]
    found = []
    for moments in (
        lambda y: channel_moments(y, dim),
        lambda y: torch.var_mean(y, axes, correction=0)[::-1],
    ):
        leaf = x.clone().requires_grad_()
        mean, variance = moments(leaf)  # type: ignore[no-untyped-call]
        (weights[0] * mean.square() + weights[1] * variance.sqrt()).sum().backward()
        assert leaf.grad is not None
        found.append((mean.detach(), variance.detach(), leaf.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
