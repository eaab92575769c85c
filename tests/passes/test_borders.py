"""A border that is assigned to slices is a padding between two affines: it folds, and costs no scatter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.ir.graph import op_name
from normfold.targets import RuntimeSession, export_onnx
from normfold.targets.onnx import Exported
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


def last_column(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[..., -1] = 0
    return y


def a_row_of_another(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[..., 0] = y[..., 1]
    return y


def infinite(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    y = y * 1
    y[:, :, :1] = torch.full((1, 4, 1, 1), 3e38) * 10
    return y[:, :, 1:]


@pytest.mark.parametrize(
    "write",
    [two_values, between, of_the_input, one_channel, last_column, a_row_of_another, infinite],
)
def test_other_writes_are_a_concat(write: Callable[..., Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturb(Net(write)), torch.randn(2, 3, 8, 7)
    exported = export_onnx(folded(net, x), tmp_path / "net.onnx")
    assert "ScatterND" not in exported.census.ops
    x = torch.randn(3, 3, 8, 7)
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6


# -- data that are written into a constant ----------------------------------------------------------


def _full(value: float) -> Callable[..., Tensor]:
    return lambda x, *size: torch.full(size, value, dtype=x.dtype)


def _per_channel(x: Tensor, *size: int) -> Tensor:
    return torch.arange(4.0, dtype=x.dtype).view(1, 4, 1, 1).expand(size).clone()


class Inserted(nn.Module):
    """norm(x) in the middle of a constant, a convolution and a norm of that."""

    def __init__(self, make: Callable[..., Tensor], low: int, high: int) -> None:
        super().__init__()
        self.make, self.low, self.high = make, low, high
        self.inner, self.outer = nn.BatchNorm2d(4), nn.BatchNorm2d(5)
        self.conv = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(F.relu(x))
        n, c, h, w = x.shape
        y = self.make(x, n, c, h + self.low + self.high, w + self.low + self.high)
        inside = slice(self.low, -self.high if self.high else None)
        y[..., inside, inside] = x
        return self.outer(self.conv(y))  # type: ignore[no-any-return]


def test_zeros_are_the_padding_of_torch(tmp_path: Path) -> None:
    class Padded(Inserted):
        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.conv(F.pad(self.inner(F.relu(x)), [1] * 4)))  # type: ignore[no-any-return]

    found = []
    for kind in (Inserted, Padded):
        torch.manual_seed(0)
        net = perturb(kind(CONSTANTS["zeros"], 1, 1))
        graph = folded(net, torch.randn(2, 4, 6, 5))
        found.append([op_name(node) for node in graph.nodes if node.op == "call_function"])
    assert found[0] == found[1] == ["relu", "pad", "conv2d", "add"]


CONSTANTS = {
    "zeros": lambda x, *size: torch.zeros(size, dtype=x.dtype),
    "new zeros": lambda x, *size: x.new_zeros(size),
    "ones": lambda x, *size: torch.ones(size, dtype=x.dtype),
    "full": _full(0.3),
    "new full": lambda x, *size: x.new_full(size, -1.5),
    "by channel": _per_channel,
}


@pytest.mark.parametrize(
    ("low", "high", "dynamic"), [(1, 1, "batch"), pytest.param(2, 0, None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("make", CONSTANTS)
def test_data_within_a_constant(
    make: str, low: int, high: int, dynamic: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = perturb(Inserted(CONSTANTS[make], low, high)), torch.randn(2, 4, 6, 5)
    graph = normfold.capture(net, (x,), dynamic=dynamic)
    as_it_is, _ = normfold.run(graph, "canonicalize,restore,bake", verify="each")
    exported = export_onnx(as_it_is, tmp_path / "plain.onnx")
    own = (
        make == "by channel" or "zeros" in make
    )  # ops of its own; zeros are the convolution's pads
    assert exported.census.ops.get("Pad", 0) == (not own)
    folded, report = normfold.run(graph, "canonicalize,fold-affine,restore,bake", verify="each")
    exported = export_onnx(folded, tmp_path / "folded.onnx")
    assert "ScatterND" not in exported.census.ops
    if "zeros" not in make:
        assert not any(item.declined for item in report.passes)
        assert not {"Mul", "Add", "BatchNormalization"} & set(exported.census.ops)
    x = torch.randn(3 if dynamic else 2, 4, 6, 5)
    found = RuntimeSession(exported.path, threads=1).run([x])
    assert error(found, reference(net, x)) < 3e-6


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_every_axis_has_a_border(value: float, tmp_path: Path) -> None:
    def forward(x: Tensor) -> Tensor:
        y = torch.full((x.shape[0] + 1, 6, 7), value)
        y[:-1, 1:-1, 2:] = x
        return y * 2

    exported, x = _exported(forward, torch.randn(3, 4, 5), tmp_path)
    assert exported.census.ops == {"Pad": 1, "Mul": 1}
    (found,) = RuntimeSession(exported.path, threads=1).run([x])
    assert torch.equal(found, forward(x))


@pytest.mark.parametrize("value", [0.1, 2.0])
def test_a_border_in_half_precision(value: float, tmp_path: Path) -> None:
    def forward(x: Tensor) -> Tensor:
        y = x.new_full((2, 4, 6), value)
        y[:, :, 1:] = x
        return y

    exported, x = _exported(forward, torch.randn(2, 4, 5).half(), tmp_path)
    assert exported.census.ops == {"Pad": 1}
    (found,) = RuntimeSession(exported.path, threads=1).run([x])
    assert torch.equal(found, forward(x))


def twice(x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, 10)
    y[:, :, :5], y[:, :, 6:] = x, x[..., 1:]
    return y


def other_values(x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, 7)
    y[:, :, :6] = 1.0
    y[:, :, :5] = x
    return y


def minus_infinity(x: Tensor) -> Tensor:
    y = torch.full((2, 4, 6), -math.inf)
    y[:, :, 1:] = x
    return y


def integers(x: Tensor) -> Tensor:
    y = torch.full((2, 4, 6), 3)
    y[:, :, 1:] = x.long()
    return y


@pytest.mark.parametrize("forward", [twice, other_values, minus_infinity, integers])
def test_what_is_no_border(forward: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    exported, x = _exported(forward, torch.randn(2, 4, 5), tmp_path)
    (found,) = RuntimeSession(exported.path, threads=1).run([x])
    assert torch.equal(found, forward(x))


def _exported(
    forward: Callable[[Tensor], Tensor], x: Tensor, folder: Path
) -> tuple[Exported, Tensor]:
    class Forward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    graph = normfold.capture(Forward(), (x,), dynamic=None)
    result, _ = normfold.run(graph, "canonicalize,restore,bake", verify="each")
    return export_onnx(result, folder / "net.onnx"), x


@pytest.mark.parametrize("batch", [1, 5])
def test_a_border_has_no_entries_along_a_free_axis(batch: int) -> None:
    """The kept part of a mask of ones, as a masked autoencoder has it: every axis is free, or has the border."""

    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[0], 7)
            mask[:, :4] = x * 2
            return mask

    graph = normfold.capture(Mask(), (torch.randn(2, 4),))
    after, _ = normfold.run(graph, "canonicalize", verify="off")
    assert not any(op_name(node) in _WRITES for node in after.nodes)
    x = torch.randn(batch, 4)
    assert torch.equal(after(x), Mask()(x))
