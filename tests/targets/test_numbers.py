"""Arithmetic on sizes, in the file as in Python: at sizes on both sides of zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import normfold

LENGTHS = (3, 6, 7, 9, 12, 33)


class Scaled(nn.Module):
    """A mean, times a number made of the length."""

    def __init__(self, number: Callable[[Any], Any]) -> None:
        super().__init__()
        self.body, self.number = nn.Linear(4, 4), number

    def forward(self, x: Tensor) -> Any:
        return self.body(x.mean(1)) * self.number(x.shape[1])


@pytest.mark.parametrize(
    "number",
    [
        lambda n: (n - 10) // 4,
        lambda n: -(-n // 4),
        lambda n: (n - 10) % 4,
        lambda n: (n / 3 - 4) // 2 + (n / 3 - 4) % 2,
        lambda n: math.sqrt(n) + round(n / 4) + math.ceil((n - 10) / 4),
        lambda n: ((n - 10) >> 1) + (n << 1) + (n & 3),
    ],
    ids=["floor", "ceiling", "modulo", "floats", "roots", "bits"],
)
def test_numbers_are_those_of_python(number: Callable[[Any], Any], tmp_path: Path) -> None:
    net = Scaled(number).eval()
    result = normfold.convert(
        net, "folded", inputs=["2x20x4"], dynamic=["x:1"], export="onnx", output=tmp_path
    )
    assert not [note for note in result.report.notes if "`x:1`" in note]
    session = onnxruntime.InferenceSession(next(tmp_path.glob("*.onnx")))
    for length in LENGTHS:
        x = torch.randn(2, length, 4)
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, net(x).detach().numpy(), atol=1e-5)
