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


def test_blocks_of_8_bits() -> None:
    weight = weights(10, 70)
    grid = to_grid(weight, 1, 8, block=32)
    assert grid.scale.shape == (10, 3)
    for place, start in enumerate((0, 32, 64)):
        part = weight[:, start : start + 32]
        scale = (part.abs().amax(1, keepdim=True) / 127).bfloat16()  # as files hold it
        wanted = (part / scale.double()).round().clamp(-127, 127) * scale.double()
        torch.testing.assert_close(grid.values[:, start : start + 32], wanted)
        torch.testing.assert_close(grid.scale[:, place], scale[:, 0].float())


@pytest.mark.parametrize("clip", [False, True])
def test_blocks_of_4_bits_use_all_16_steps(clip: bool) -> None:
    """Scales have the sign that lets the largest weight take the end with one step more, where that errs less."""
    weight = weights(64, 32)
    grid = to_grid(weight, 1, 4, block=32, clip=clip)
    assert int(grid.steps.min()) == -8
    assert int(grid.steps.max()) == 7
    assert bool((grid.scale < 0).any())
    assert bool((grid.scale > 0).any())
    symmetric = to_grid(weight, 0, 4)
    before, after = ((found.values - weight).square().sum() for found in (symmetric, grid))
    assert float(after) < 0.95 * float(before)


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
