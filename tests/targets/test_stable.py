"""Ops on values at which torch.onnx's forms of them overflow, cancel or round: right in onnxruntime.

`sweep` has the whole table; here stand the ops that are written otherwise, one by one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.targets import RuntimeSession, export_onnx
from tests.targets.extremes import Case, every
from tests.targets.known import KNOWN
from tests.targets.nets import folded
from tests.targets.sweep import outcome, outcomes

_X = torch.tensor(
    [0.0, 1e-30, 1e-7, -1e-7, 0.3, -0.6, 1.0, -1.0, 7.5, -15.0, 20.0, -20.0, 88.0, -100.0, 1e4, -1e10, 3e38,
     math.inf, -math.inf, math.nan]
)  # fmt: skip
_Y = _X.roll(3)
_BIG = torch.tensor(
    [7, -7, 16777217, -16777217, 2**31 - 1, -(2**31 - 1), 2**53 + 1, -(2**53 + 1), 2**62]
)

_BIGGEST = torch.tensor([2**63 - 1, -(2**63), -(2**63) + 1])

MENDED: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "log_sigmoid": (F.logsigmoid, (_X,)),
    "log of sigmoid": (lambda x: torch.log(torch.sigmoid(x)), (_X[_X.abs() < 101].clamp(max=1),)),
    "log1p": (torch.log1p, (_X,)),
    "log1p of exp": (lambda x: torch.log1p(torch.exp(x)), (_X,)),
    "expm1": (torch.expm1, (_X,)),
    "logaddexp": (lambda x: torch.logaddexp(x[:, None], x[None]), (_X,)),
    "logaddexp2": (lambda x: torch.logaddexp2(x[:, None], x[None]), (_X[2:12],)),
    "atan2": (lambda x: torch.atan2(x[:, None], torch.cat([x, -x])[None]), (_X,)),
    "remainder": (torch.remainder, (_X, _Y)),
    "floor_divide": (torch.floor_divide, (_X, _Y)),
    "div floor by 0.1": (
        lambda x: torch.div(x, 0.1, rounding_mode="floor"),
        (torch.arange(-9.0, 10),),
    ),
    "div trunc of integers": (lambda x: torch.div(x, 3, rounding_mode="trunc"), (_BIG,)),
    "div floor of integers": (lambda x: torch.div(x, -3, rounding_mode="floor"), (_BIG,)),
    "floor_divide of the largest": (lambda x: x // 7, (_BIGGEST,)),
    "remainder of a number": (lambda x: torch.remainder(3.0, x), (_X,)),
    "an average with a divisor": (
        lambda x: F.avg_pool2d(x, (2, 3), 2, 1, divisor_override=5),
        (torch.randn(1, 2, 7, 8),),
    ),
    "cosine similarity": (  # comes apart only in the exporter, with ops that write
        lambda x: F.cosine_similarity(x, x.flip(-1), -1),
        (_X.reshape(4, 5),),
    ),
    "a clamp by a tensor": (lambda x: x.clamp(min=torch.tensor(0.5)), (_X,)),
    "cross entropy of smoothed labels": (
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1, ignore_index=3),
        (torch.randn(6, 5) * 9, torch.arange(6) % 5),
    ),
    "smoothed, of pixels": (
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.2, reduction="none"),
        (torch.randn(2, 5, 3), torch.arange(6).view(2, 3) % 5),
    ),
    "scattered means": (
        lambda x, i, y: [
            x.scatter_reduce(0, i, y, "mean", include_self=own) for own in (True, False)
        ],
        (torch.randn(4), torch.tensor([0, 2, 2, 0, 0]), torch.randn(5)),
    ),
    "fmod of integers": (lambda x: torch.fmod(x, 7), (_BIG,)),
    "clamp from below": (lambda x: x.clamp(min=0.5), (_X,)),
    "clamp from an integer": (lambda x: x.clamp(min=1), (_X,)),
    "clamp from above": (lambda x: x.clamp_max(0.5), (_X,)),
}


@pytest.mark.parametrize("name", MENDED)
def test_it_is_torchs_at_extreme_values(name: str) -> None:
    function, inputs = MENDED[name]
    found = outcome(Case(name, function, inputs))
    assert not found.refused, str(found)
    assert not found.count, str(found)


def test_a_matchability_of_large_logits(tmp_path: Path) -> None:
    """log sigmoid was Log(Sigmoid(x)), which is -inf from -18 on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.logsigmoid(self.head(x) * 100)

    net, x = Net().eval(), torch.randn(5, 4) * 10
    exported = export_onnx(folded(net, x), tmp_path / "net.onnx")
    assert exported.census.ops["Softplus"] == 1
    assert "Log" not in exported.census.ops
    (result,) = RuntimeSession(exported.path, threads=1).run([x])
    with torch.no_grad():
        expected = net(x)
    assert float(expected.min()) < -200
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [
                F.logsigmoid(x),
                torch.log1p(x.abs()),
                torch.expm1(x),
                torch.logaddexp(x, -x),
                x % 0.75,
            ]

    x = torch.tensor([-9.0, -0.25, 0.0, 1e-3, 0.5, 8.0], dtype=dtype)
    exported = export_onnx(folded(Net().eval(), x, dynamic=None), tmp_path / "net.onnx")
    for result, expected in zip(
        RuntimeSession(exported.path, threads=1).run([x]), Net()(x), strict=True
    ):
        torch.testing.assert_close(result, expected)


@pytest.mark.slow
def test_the_whole_table() -> None:
    """No op is wrong but those that onnxruntime itself computes otherwise, listed with `sweep`."""
    cases = every()
    groups = [cases[start : start + 20] for start in range(0, len(cases), 20)]
    found = [result for group in groups for result in outcomes(group)]
    wrong = [str(result) for result in found if result.count and result.case.name not in KNOWN]
    assert not wrong
