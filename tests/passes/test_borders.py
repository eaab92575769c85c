"""A border that is assigned to slices is a padding between two affines: it folds, and costs no scatter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.ir.graph import op_name
from normfold.targets import RuntimeSession, export_onnx
from tests.targets.nets import error, folded, perturb, reference

_WRITES = {"slice_scatter", "select_scatter", "copy", "fill"}


def _around(y: Tensor, v: Tensor | float) -> Tensor:
    y[:, :, 0:1] = v
    y[:, :, -1:] = v
    y[:, :, :, 0:1] = v
    y[:, :, :, -1:] = v
    return y


def _of_norm(norm: nn.BatchNorm2d) -> Tensor:
    root = torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator,arg-type]
    return (norm.bias - norm.running_mean * norm.weight / root).view(1, -1, 1, 1)  # type: ignore[operator]


def padded(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """As in a Diverse Branch Block."""
    return _around(F.pad(y, [1] * 4), _of_norm(norm))


def overwritten(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return _around(y + 0, _of_norm(norm))


def one_side(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, :2] = _of_norm(norm)
    return y


def zeros(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[..., :1] = 0
    return y


def a_row(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, 0] = _of_norm(norm)[..., 0]
    return y


def filled(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, -2:].fill_(3.5)
    return y


def wider_than_the_pad(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = F.pad(y, (1, 1, 0, 1))
    v = _of_norm(norm)
    y[..., :2], y[..., -1:], y[:, :, -1:] = v, v, v
    return y


class Net(nn.Module):
    def __init__(self, write: Callable[[Tensor, nn.BatchNorm2d], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.inner = nn.BatchNorm2d(4)
        self.outer = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.write(self.inner(self.conv(x)), self.inner)
        return torch.relu(self.outer(F.avg_pool2d(y, 3, 1)))


BORDERS = (padded, overwritten, one_side, zeros, a_row, filled, wider_than_the_pad)


@pytest.mark.parametrize("write", BORDERS, ids=lambda write: write.__name__)
def test_it_folds(write: Callable[..., Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturb(Net(write)), torch.randn(2, 3, 8, 7)
    graph = folded(net, x)
    assert not {op_name(node) for node in graph.nodes} & _WRITES
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.census.batch_norms == 0
    assert "ScatterND" not in exported.census.ops
    x = torch.randn(3, 3, 8, 7)
    for level in ("all", "none"):
        assert (
            error(RuntimeSession(exported.path, level, threads=1).run([x]), reference(net, x))
            < 3e-6
        )


def two_values(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, :1], y[:, :, -1:] = _of_norm(norm), _of_norm(norm) * 2
    return y


def between(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, 2:4] = _of_norm(norm)
    return y


def of_the_input(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, :1] = y[:, :, 3:4]
    return y


def one_channel(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, 0] = 2.0
    return y


def infinite(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, :1] = torch.full((1, 4, 1, 1), 3e38) * 10
    return y[:, :, 1:]


@pytest.mark.parametrize("write", [two_values, between, of_the_input, one_channel, infinite])
def test_other_writes_are_a_concat(write: Callable[..., Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturb(Net(write)), torch.randn(2, 3, 8, 7)
    exported = export_onnx(folded(net, x), tmp_path / "net.onnx")
    assert "ScatterND" not in exported.census.ops
    x = torch.randn(3, 3, 8, 7)
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6
