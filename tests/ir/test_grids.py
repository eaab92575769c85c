"""Weights on grids: against the definitions, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normfold.ir.grids import Grid, to_grid


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def errors(grid: Grid, weight: Tensor) -> Tensor:
    """In steps."""
    scale = grid.scale.double().reshape(
        [-1 if dim == grid.axis else 1 for dim in range(weight.dim())]
    )
    return (grid.values - weight) / scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_nearest(bits: int, axis: int) -> None:
    weight = weights(6, 5, 3, 3)
    grid = to_grid(weight, axis, bits)
    top = 2 ** (bits - 1) - 1
    rest = [dim for dim in range(4) if dim != axis]
    torch.testing.assert_close(grid.scale, (weight.abs().amax(rest) / top).float())
    assert int(grid.steps.abs().max()) == top
    assert float(errors(grid, weight).abs().max()) <= 0.5 + 1e-5


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (16, 12, 1, 1), (16, 1, 3, 3), (16, 40)])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_squant_leaves_no_sum_of_errors(shape: tuple[int, ...], bits: int) -> None:
    weight = weights(*shape)
    near, squant = (to_grid(weight, 0, bits, rounding=way) for way in ("nearest", "squant"))
    error = errors(squant, weight)
    assert float(error.abs().max()) <= 1 + 1e-5
    assert int(squant.steps.abs().max()) <= 2 ** (bits - 1) - 1
    channels = error.flatten(1).sum(1).abs()
    assert float(channels.max()) <= 0.5 + 1e-3
    assert (
        float(errors(near, weight).flatten(1).sum(1).abs().max()) > 0.8
    )  # there was something to do
    if len(shape) == 4 and shape[1] > 1:
        assert float(error.sum((2, 3)).abs().max()) <= 1 + 1e-5


def test_blocks() -> None:
    weight = weights(10, 70)
    grid = to_grid(weight, 1, 4, block=32)
    assert grid.scale.shape == (10, 3)
    for start in (0, 32, 64):
        part = weight[:, start : start + 32]
        one = to_grid(part, 0, 4)
        torch.testing.assert_close(grid.values[:, start : start + 32], one.values)


def test_a_clipped_scale_is_never_worse() -> None:
    weight = weights(8, 64)
    weight[:, 0] *= 6  # an outlier in every channel
    plain, clipped = (to_grid(weight, 0, 4, clip=clip) for clip in (False, True))
    before, after = ((grid.values - weight).square().sum(1) for grid in (plain, clipped))
    assert bool((after <= before + 1e-9).all())
    assert float(after.sum()) < 0.9 * float(before.sum())


def test_a_channel_of_zeros() -> None:
    weight = weights(3, 4)
    weight[1] = 0
    grid = to_grid(weight, 0, 8)
    assert float(grid.scale[1]) == 1.0
    assert not grid.steps[1].any()
