"""Pooled moments and the least-squares affine against the concatenated batches and a linear solver."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normfold.errors import UsageError
from normfold.nn import Moments
from tests.nn.norms import tokens


def batches() -> tuple[list[Tensor], list[Tensor]]:
    xs = [tokens(2, n, 4, seed=n) + 1e3 * (n == 7) for n in (3, 7, 1)]
    return xs, [3 * x.sin() + 0.1 * x + 5 for x in xs]


def test_pooled_moments_are_those_of_all_tokens() -> None:
    moments = Moments(4)
    xs, ys = batches()
    for x, y in zip(xs, ys, strict=True):
        moments.update(x, y)
    x, y = (torch.cat(parts, 1).flatten(0, 1) for parts in (xs, ys))
    assert moments.count == len(x)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.mean_square, x.square().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=1e-10, atol=0)
    scale, shift = moments.affine(ridge=0)
    for channel in range(4):
        design = torch.stack([x[:, channel], torch.ones(len(x), dtype=torch.float64)], 1)
        fit = torch.linalg.lstsq(design, y[:, channel : channel + 1])
        wanted = fit.solution[:, 0]
        torch.testing.assert_close(torch.stack([scale[channel], shift[channel]]), wanted)
        rest = (y[:, channel] - design @ wanted).square().sum()
        total = (y[:, channel] - y[:, channel].mean()).square().sum()
        torch.testing.assert_close(moments.r_squared[channel], 1 - rest / total)


def test_ridge_and_channels_that_do_not_vary() -> None:
    x, y = tokens(50, 4), tokens(50, 4, seed=1)
    x[:, 2], y[:, 3] = 1.0, 2.0
    moments = Moments(4)
    moments.update(x, y)
    scale, shift = moments.affine(ridge=0.5)
    variance = x.var(0, correction=0)
    cov = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    torch.testing.assert_close(scale, cov / (variance + 0.5 * variance.mean()))
    torch.testing.assert_close(shift, y.mean(0) - scale * x.mean(0))
    assert moments.affine(ridge=0)[0][2] == 0
    assert moments.r_squared[2] == 0
    assert moments.r_squared[3] == 1


def test_masks_axes_and_empty_batches() -> None:
    x = tokens(2, 5, 6, 4)
    mask = torch.rand(2, 5, 6) > 0.5
    moments = Moments(4)
    moments.update(x.movedim(-1, 1).float(), axis=1, mask=torch.zeros_like(mask))
    moments.update(x.movedim(-1, 1), axis=1, mask=mask)
    assert moments.count == int(mask.sum())
    torch.testing.assert_close(moments.mean, x[mask].mean(0), rtol=1e-12, atol=0)


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(UsageError, match="no token"):
        _ = Moments(4).mean
    with pytest.raises(UsageError, match="4 features"):
        Moments(4).update(tokens(2, 5))
    with pytest.raises(UsageError, match="4 features"):
        Moments(4).update(tokens(2, 4), tokens(3, 4))
