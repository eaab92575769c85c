"""Rounding that a network enlarges: allowed as far as the original does it; jumps and wrong results are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.judge import Verifier

EPS = torch.finfo(torch.float32).eps


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def waves(x: Tensor) -> Tensor:
    """The error of x comes out 100 times as large; at 1.25 the original happens to make none but the sine's."""
    return torch.sin(100 * x)


def verdict(original: Callable[[Tensor], Tensor], result: Callable[[Tensor], Tensor]) -> list[bool]:
    """Of the row that is given, and of the inputs that the verifier makes."""
    x = torch.tensor([[1.25], [1.25]])
    verifier = Verifier(capture(Function(original), (x,)), samples=[(x,)])
    check = verifier.outputs("result", lambda inputs: [result(inputs[0])])
    return [item.ok for item in check.outputs]


def test_the_original_would_err_as_much() -> None:
    reference = torch.tensor([[1.25]])
    error = (waves(reference * (1 + EPS)) - waves(reference.double())).abs() / waves(reference)
    assert float(error.abs()) > 20 * EPS  # beyond what one draw of the original allows
    assert all(verdict(waves, lambda x: waves(x * (1 + EPS))))


@pytest.mark.parametrize("factor", [1 + 200 * EPS, 1.001, -1.0])
def test_what_the_original_never_does_is_wrong(factor: float) -> None:
    assert not all(verdict(waves, lambda x: waves(x * factor)))


def test_a_jump_is_no_excuse() -> None:
    def steps(x: Tensor) -> Tensor:
        return torch.floor(4 * x) + 1

    assert all(verdict(steps, steps))
    assert not all(verdict(steps, lambda x: torch.ceil(4 * x)))


def test_integers_have_no_last_bit() -> None:
    x = torch.tensor([[3], [4]])
    verifier = Verifier(capture(Function(lambda x: 2 * x), (x,)))
    assert verifier.outputs("result", lambda inputs: [2 * inputs[0]])
    assert not verifier.outputs("result", lambda inputs: [2 * inputs[0] + 1])
