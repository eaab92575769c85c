"""What cannot be captured is named, with the user's line, and hints are true."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import CaptureError
from normfold.ir import capture

SOURCE = """from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x)
"""


def test_a_folder_of_the_user_s_that_is_called_normfold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "normfold" / "nets"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("mine_of_the_user", folder / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine_of_the_user", module)
    spec.loader.exec_module(module)
    with pytest.raises(CaptureError) as caught:
        capture(module.Net().eval(), (torch.randn(2, 4, 6),))
    assert str(caught.value.where).startswith(f"{folder / 'mine.py'}:10")


OUTSIDE = torch.zeros(3)


class Written(nn.Module):
    """A network with buffers that share memory, and an attribute that is none."""

    whole: Tensor
    part: Tensor

    def __init__(self, write: Callable[[Written, Tensor], object], kept: bool = False) -> None:
        super().__init__()
        self.write, self.fc = write, nn.Linear(4, 3)
        memory = torch.zeros(3)
        self.register_buffer("whole", memory)
        self.register_buffer("part", memory[1:].clone() if kept else memory[1:])
        self.state = nn.Module()
        if kept:
            self.state.register_buffer("total", torch.zeros(3))
        else:
            self.state.total = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.fc(x)
        self.write(self, h)
        return h + self.whole + self.part.sum()


def _total(net: Written, h: Tensor) -> object:
    total: Tensor = net.state.total  # type: ignore[assignment]
    return total.add_(1)


@pytest.mark.parametrize(
    ("write", "what", "found", "hint"),
    [
        (lambda net, h: h.data.mul_(2), "takes `.data`", "mul_", "detach"),
        (lambda net, h: OUTSIDE.add_(1), "no buffer", "outside", "register_buffer"),
        (_total, "no buffer", "`state.total`", "register_buffer('total', ...)"),
    ],
)
@pytest.mark.parametrize("dynamic", ["batch", None])
def test_writes_that_torch_does_not_trace(
    write: Callable[[Written, Tensor], object],
    what: str,
    found: str,
    hint: str,
    dynamic: str | None,
) -> None:
    with pytest.raises(CaptureError, match=what) as caught:
        capture(Written(write).eval(), (torch.randn(2, 4),), dynamic=dynamic)
    assert found in str(caught.value.found)
    assert hint in str(caught.value.hint)
    assert "test_refusal.py:" in str(caught.value.where)


@pytest.mark.parametrize(
    "write", [lambda net, h: net.part.add_(1), lambda net, h: h.detach().mul_(2), _total]
)
def test_what_these_hints_advise(write: Callable[[Written, Tensor], object]) -> None:
    torch.manual_seed(0)
    net, x = Written(write, kept=True).eval(), torch.randn(2, 4)
    made = capture(net, (x,)).module(x)
    torch.testing.assert_close(made, net(x))


class Assigned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h.data = h.data + 1
        return h


def test_data_that_is_set() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Assigned(), (torch.randn(2, 4),))
    assert ".data" in str(caught.value.found)
    assert "detach" in str(caught.value.hint)


class Steps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[1:] - x[:-1]


class Eight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, -1) * 2 + x


def test_a_part_of_a_small_batch() -> None:
    with pytest.raises(CaptureError, match="fixes `x:0` at 2") as caught:
        capture(Steps(), (torch.randn(2, 4),))
    assert "larger ones are enough (`--input x:4x...`)" in str(caught.value.hint)
    made = capture(Steps(), (torch.randn(4, 4),)).module(torch.ones(7, 4))
    assert made.shape == (6, 4)
    with pytest.raises(CaptureError, match="fixes `x:0` at 8") as caught:
        capture(Eight(), (torch.randn(8, 4),))
    assert "larger" not in str(caught.value.hint)
