"""torch.set_default_dtype of a user's script changes nothing of what is computed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normfold
from tests.nets import Encoder, perturb

JOBS: dict[str, dict[str, Any]] = {
    "rmsnorm": {"to": "rmsnorm"},
    "int8": {"quantize": "int8", "synthesis_steps": 2},
    "int4": {"quantize": "int4-weights"},
}


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.usefixtures("default")
def test_a_network_in_single_precision(job: str, tmp_path: Path) -> None:
    net: nn.Module
    shape: tuple[int, ...]
    if job == "int8":
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
        net, shape = nn.Sequential(*layers), (2, 3, 8, 8)
    else:
        net, shape = Encoder(), (2, 5, 8)
    x = torch.randn(shape, dtype=torch.float32)
    made = normfold.convert(perturb(net.float()), inputs=(x,), output=tmp_path, **JOBS[job])
    assert made.ok
