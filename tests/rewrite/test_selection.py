"""A part of a cat that lies in one operand is read there, at every size; what crosses a border is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline

Reading = Callable[[Tensor], Tensor]


class Joined(nn.Module):
    """Three tensors joined along tokens: 2, then T, then 3; and a part of that."""

    def __init__(self, read: Reading, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.read, self.order = read, order

    def forward(self, tokens: Tensor, first: Tensor, last: Tensor) -> Tensor:
        parts = (first, tokens, last)
        return self.read(torch.cat([parts[index] for index in self.order], 1)) * 2


def rewritten(module: nn.Module, dynamic: bool) -> tuple[set[str], float]:
    """The ops that are left, and the largest error at the captured and another number of tokens."""
    example = (torch.randn(2, 5, 4), torch.randn(2, 2, 4), torch.randn(2, 3, 4))
    shapes = {"tokens": {1: Dim.DYNAMIC}, "first": {}, "last": {}} if dynamic else None
    graph, _ = run_pipeline(capture(module, example, dynamic=shapes), parse("canonicalize"))
    worst = 0.0
    for count in (5, 9) if dynamic else (5,):
        inputs = (torch.randn(2, count, 4), *example[1:])
        result, wanted = graph.module(*inputs), module(*inputs)
        assert result.shape == wanted.shape
        worst = max(worst, float((result - wanted).abs().max()))
    return {op_name(node) for node in graph.nodes}, worst


INSIDE: dict[str, tuple[Reading, tuple[int, ...]]] = {
    "select in the first": (lambda x: x[:, 1], (0, 1, 2)),
    "all of the first": (lambda x: x[:, :2], (0, 1, 2)),
    "a part of the first": (lambda x: x[:, 1:2], (0, 2, 1)),
    "through x[:]": (lambda x: x[:][:, 0:1], (0, 1, 2)),
    "all of the second": (lambda x: x[:, 2:5], (0, 2, 1)),
    "the last, to its end": (lambda x: x[:, 5:], (0, 2, 1)),
    "within the last": (lambda x: x[:, 6:], (0, 2, 1)),
    "select in the last": (lambda x: x[:, 6], (0, 2, 1)),
    "beyond the end": (lambda x: x[:, 6:800], (0, 2, 1)),
}
ACROSS: dict[str, tuple[Reading, tuple[int, ...]]] = {
    "over a border": (lambda x: x[:, 1:4], (0, 1, 2)),
    "from the end": (lambda x: x[:, -2:], (0, 1, 2)),
    "select from the end": (lambda x: x[:, -1], (0, 1, 2)),
    "every second": (lambda x: x[:, ::2], (0, 1, 2)),
    "another axis": (lambda x: x[..., :2], (0, 1, 2)),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", INSIDE)
def test_read_from_the_operand(name: str, dynamic: bool) -> None:
    ops, error = rewritten(Joined(*INSIDE[name]), dynamic)
    assert "cat" not in ops
    assert error == 0


@pytest.mark.parametrize("name", ACROSS)
def test_left_alone(name: str) -> None:
    ops, error = rewritten(Joined(*ACROSS[name]), dynamic=False)
    assert "cat" in ops
    assert error == 0


def test_behind_a_dynamic_size_nothing_is_known() -> None:
    ops, error = rewritten(Joined(lambda x: x[:, 3:4], (1, 0, 2)), dynamic=True)
    assert "cat" in ops
    assert error == 0
