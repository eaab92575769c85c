"""Affine branches in trees of sums, where one tensor stands more than once or with a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets import Compose, conv, perturb
from tests.passes.judge import fold, right

SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "twice": lambda m, x: (x + x) + m.norm(x),
    "nothing": lambda m, x: (x - x) + m.norm(x),
    "taken off": lambda m, x: m.norm(x) - (x - x),
    "a multiple": lambda m, x: torch.add(m.conv(x), m.norm(x), alpha=0.3),
    "of a multiple": lambda m, x: torch.add(m.norm(x), m.conv(x), alpha=0.3),
    "of the other": lambda m, x: torch.sub(x, m.norm(x), alpha=-2),
    "alone": lambda m, x: torch.add(m.norm(x), m.norm(x), alpha=2),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return SUMS[name](self, x).relu()

    net = Compose(forward, norm=nn.BatchNorm2d(4), conv=conv(4, 4, padding=1))
    right(fold(perturb(net), torch.randn(2, 4, 6, 5)))
