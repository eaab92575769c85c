"""Random ops are named, unless they are switched off or nobody reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture


class Net(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.draw = nn.Linear(6, 6), draw

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) + self.draw(x)


@pytest.mark.parametrize(
    ("draw", "op"),
    [
        (torch.randn_like, "randn_like"),
        (lambda x: torch.bernoulli(torch.sigmoid(x)), "bernoulli"),
        (lambda x: F.dropout(x, 0.5, training=True), "dropout"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3), "attention"),
        (lambda x: F.dropout(x, 0.5, training=False), ""),
        (lambda x: F.scaled_dot_product_attention(x, x, x), ""),
        (lambda x: x + 0 * torch.rand(6).numel(), ""),
    ],
)
def test_random_ops_are_named_with_their_line(draw: Callable[[Tensor], Tensor], op: str) -> None:
    notes = capture(Net(draw).eval(), (torch.randn(2, 6),)).notes
    assert len(notes) == bool(op)
    if op:
        assert "draws random numbers" in notes[0]
        assert op in notes[0]
        assert "test_randomness.py:" in notes[0]
