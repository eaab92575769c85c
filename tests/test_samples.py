"""``data`` reaches passes of one's own that measure, and is refused where nothing does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfold
from normfold.errors import UsageError

NEAR = "canonicalize,fold-near-affine,fold-affine,restore,bake"
X = torch.randn(2, 8)


def net() -> nn.Module:
    """A LayerNorm that divides by a number that barely varies."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(8, eps=1e6)
    with torch.no_grad():
        norm.weight.mul_(1e3)
    return nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 4)).eval()


def test_samples_are_measured_on() -> None:
    samples = torch.randn(64, 8)
    made = normfold.convert(net(), inputs=(X,), data=samples, passes=NEAR)
    near = next(item for item in made.report.passes if item.name == "fold-near-affine")
    assert (near.rewrites, near.declined) == (1, [])
    assert made.report.ok
    without = normfold.convert(net(), inputs=(X,), passes=NEAR)
    near = next(item for item in without.report.passes if item.name == "fold-near-affine")
    assert [item.code for item in near.declined] == ["NF127"]


def test_samples_that_nothing_reads_are_refused() -> None:
    with pytest.raises(UsageError, match="none of the passes measures"):
        normfold.convert(net(), inputs=(X,), data=X, passes="canonicalize,fold-affine")
    with pytest.raises(UsageError, match="or `--passes` that measure"):
        normfold.convert(net(), inputs=(X,), data=X)
