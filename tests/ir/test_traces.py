"""What a call leaves on a network, which a file cannot: it is said, and tables are made before the capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import CaptureError
from normfold.ir import capture
from normfold.ir.capture import dynamic_axes

X = torch.randn(2, 5, 6)


class Stateful(nn.Module):
    """Each kind of state is another method; ``forward`` runs the one that was asked for."""

    table: Tensor
    lazy: Tensor | None
    count: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.kind, self.calls = kind, 0
        self.last: Tensor | None = None
        self.seen: list[Tensor] = []
        self.by_length: dict[int, Tensor] = {}
        self.register_buffer("table", torch.zeros(0, 6), persistent=False)
        self.register_buffer("lazy", None)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return getattr(self, f"_{self.kind}")(self.fc(x), x)

    def _none(self, y: Tensor, x: Tensor) -> Tensor:
        return y

    def _number(self, y: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return y * self.calls

    def _tensor(self, y: Tensor, x: Tensor) -> Tensor:
        if self.last is None:
            self.last = y.sum(0)
        return y + self.last

    def _list(self, y: Tensor, x: Tensor) -> Tensor:
        self.seen.append(y)
        return y + len(self.seen)

    def _dict(self, y: Tensor, x: Tensor) -> Tensor:
        self.by_length.setdefault(x.shape[1], torch.arange(6.0))
        return y + self.by_length[x.shape[1]]

    def _buffer(self, y: Tensor, x: Tensor) -> Tensor:
        self.count += 1
        return y + self.count

    def _input(self, y: Tensor, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return y + x

    def _grows(self, y: Tensor, x: Tensor) -> Tensor:
        if x.shape[1] > self.table.shape[0]:
            self.table = torch.arange(x.shape[1] * 6.0).view(-1, 6)
        return y + self.table[: x.shape[1]]

    def _appears(self, y: Tensor, x: Tensor) -> Tensor:
        if self.lazy is None:
            self.lazy = torch.arange(6.0)
        return y + self.lazy

    def _swells(self, y: Tensor, x: Tensor) -> Tensor:
        self.table = torch.cat([self.table, y[0]])
        return y + self.table.sum(0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", ""),
        ("number", "attribute `calls` (0, then 1)"),
        ("tensor", "attribute `last` (None, then a tensor)"),
        ("list", "attribute `seen` (a list of 0, then a list of 1)"),
        ("dict", "attribute `by_length` (a dict of 0, then a dict of 1)"),
        ("buffer", "buffer `count`"),
        ("input", "input `x` in place"),
        ("grows", "makes the buffer `table` (0x6, then 5x6)"),
        ("appears", "attribute `lazy` (None, then a tensor)"),
    ],
)
def test_what_a_call_changes_is_said(kind: str, said: str) -> None:
    net = Stateful(kind).eval()
    graph = capture(net, (X,))
    assert len(graph.notes) == bool(said)
    assert said in "".join(graph.notes)
    torch.testing.assert_close(graph.module(X.clone()), Stateful.forward(net, X.clone()))


def test_a_table_that_grows_holds_the_sizes_of_the_example() -> None:
    net = Stateful("grows").eval()
    graph = capture(net, (X,), {}, dynamic_axes(net, (X,), {}, axes={"x": {1}}))
    assert any("`x:1`: at most 5" in note for note in graph.notes)
    torch.testing.assert_close(graph.module(X[:, :3]), net(X[:, :3]))


def test_a_buffer_that_grows_at_every_call_is_refused() -> None:
    with pytest.raises(CaptureError, match="every call") as caught:
        capture(Stateful("swells").eval(), (X,))
    assert "`table` (5x6, then 10x6)" in str(caught.value)
