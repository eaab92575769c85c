"""Diagonals in files: what is written to them, and what is read of them beside infinities."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import ExportError
from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.targets.onnx import export_onnx
from tests.nets import Compose

ort = pytest.importorskip("onnxruntime")


def _assert_same(change: Callable[[Tensor], Any], x: Tensor, path: Path) -> None:
    """Bit by bit, at another batch than that of the capture."""
    graph = capture(Compose(lambda net, x: change(x)).eval(), (x,))
    export_onnx(graph, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.cat([x, x[:1]])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = change(x)
    for made, right in zip(found, wanted if isinstance(wanted, list) else [wanted], strict=True):
        assert made.dtype == x.numpy().dtype
        np.testing.assert_array_equal(made, right.numpy())


def _numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.arange(math.prod(shape)).reshape(shape) % 11 - 5).to(dtype)


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((2, 3, 3), (1, 2), torch.float32),
        ((2, 2, 6, 3), (3, 1), torch.float16),
        ((2, 6, 3, 2), (-1, 1), torch.int64),
        ((2, 5, 3), (2, 1), torch.bool),
        ((2, 3, 5), (-2, -1), torch.int16),
    ],
)
def test_writes_to_diagonals(
    shape: tuple[int, ...], axes: tuple[int, int], dtype: torch.dtype, tmp_path: Path
) -> None:
    def change(x: Tensor) -> list[Tensor]:
        found = []
        for offset in (0, 1, -1, 4, -4, 9):
            y = x.clone()
            y.diagonal(offset, *axes).copy_(x.flip(1, 2).diagonal(offset, *axes))
            found.append(y)
        return found

    _assert_same(change, _numbers(shape, dtype), tmp_path / "model.onnx")


@pytest.mark.parametrize("number", [0.0, 3.0, -math.inf])
def test_numbers_written_to_diagonals(number: float, tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        y = x * math.inf
        y.diagonal(1, 1, 2).fill_(number)
        return y

    _assert_same(change, torch.ones(2, 3, 4), tmp_path / "model.onnx")


def test_reads_beside_infinities(tmp_path: Path) -> None:
    x = torch.where(torch.arange(30.0).reshape(2, 3, 5) % 3 > 1, math.inf, 1.0)
    _assert_same(
        lambda x: [x.diagonal(offset, 2, 1) + 1 for offset in (0, 2, -1)],
        x,
        tmp_path / "model.onnx",
    )


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        pairs = h[:, :, None] * h[:, None]
        pairs.diagonal(dim1=1, dim2=2).zero_()
        mixed = self.out.weight.T @ self.out.weight
        mixed.fill_diagonal_(0.5)
        result: Tensor = self.out(pairs) @ mixed
        return result


@pytest.mark.parametrize("target", ["ort-x86", "openvino"])
def test_networks_that_write_to_diagonals(target: str, tmp_path: Path) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    inputs = [torch.randn(3, 4)]
    assert normfold.convert(Pairs().eval(), inputs=inputs, output=tmp_path, target=target).ok


def test_a_certificate_reads_what_is_written_to_a_diagonal() -> None:
    def written(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.diagonal_scatter(x[:, :, None] * x[:, None], 2 * x, 0, 1, 2)
        return y.diagonal(0, 1, 2)

    graph, plain, wrong = (
        capture(Compose(wiring).eval(), (torch.randn(2, 4),))
        for wiring in (written, lambda net, x: x + x, lambda net, x: x * x)
    )
    assert certify(graph, plain).ok
    assert certify(graph, wrong).state == "failed"


def _free(x: Tensor) -> Tensor:
    pairs = x @ x.T
    pairs.diagonal().zero_()
    return pairs


def _strided(x: Tensor) -> Tensor:
    return x.clone().fill_diagonal_(0)


@pytest.mark.parametrize(
    ("change", "what"), [(_free, "diagonal of free sizes"), (_strided, "a write by strides")]
)
def test_writes_that_have_no_form(
    change: Callable[[Tensor], Tensor], what: str, tmp_path: Path
) -> None:
    graph = capture(Compose(lambda net, x: change(x)).eval(), (torch.randn(3, 4),))
    with pytest.raises(ExportError, match=what) as caught:
        export_onnx(graph, tmp_path / "model.onnx")
    assert "return self.wiring" in str(caught.value.where)
    assert "torch.where" in str(caught.value.hint)
