"""Placed: everything that a graph reads and makes is on the device that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.domains.placed import Placed, device_of
from normfold.errors import EnvironmentMissing, UsageError
from normfold.ir import capture
from normfold.ir.evaluation import Evaluator


class Positions(nn.Module):
    """A parameter, a buffer, a constant and tensors that are made on the way."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1], device=x.device)
        shift = torch.zeros(4, device=x.device) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        y: Tensor = self.linear(x) + self.table[at] + shift
        return y


X = torch.randn(2, 3, 4)


def test_values_are_those_of_the_network() -> None:
    module = Positions()
    (y,) = Evaluator(capture(module, (X,)).module, Placed())(X)
    torch.testing.assert_close(y, module(X))


def test_nothing_is_left_behind() -> None:
    """On torch's device without data, where an operand from elsewhere would raise or keep its place."""

    def watch(node: torch.fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            assert value.device.type == "meta", node

    graph = capture(Positions(), (X,))
    (y,) = Evaluator(graph.module, Placed("meta"), watch)(X)
    assert y.shape == X.shape
    assert {p.device.type for p in graph.module.parameters()} == {"cpu"}


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no device `tpu`"):
        device_of("tpu")
    if not torch.cuda.is_available():
        assert device_of(None) == torch.device("cpu")
        with pytest.raises(EnvironmentMissing):
            device_of("cuda")
