"""torch's registry of ONNX functions is read once, and torch is as it was behind each call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold.ir import capture
from normfold.targets import registry
from normfold.targets.onnx import export_onnx


def _torchs() -> Any:
    return sys.modules[registry._REGISTRY].ONNXRegistry


def test_torch_is_put_back() -> None:
    with registry.kept_registry():
        inside = vars(_torchs())["from_torchlib"]
        with registry.kept_registry():
            pass
        assert vars(_torchs())["from_torchlib"] is inside
    before = vars(_torchs())["from_torchlib"]
    assert before is not inside
    with pytest.raises(ValueError, match="here"), registry.kept_registry():
        raise ValueError("here")
    assert vars(_torchs())["from_torchlib"] is before


def test_the_registry_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    graph = capture(net, (torch.randn(2, 3, 8, 8),))
    export_onnx(graph, tmp_path / "a.onnx")
    read = vars(_torchs())["from_torchlib"]

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(_torchs(), "from_torchlib", staticmethod(refuse))
    export_onnx(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    monkeypatch.undo()
    assert vars(_torchs())["from_torchlib"] is read


def test_a_torch_without_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.kept_registry():
        pass
    monkeypatch.delattr(_torchs(), "from_torchlib")
    with registry.kept_registry():
        assert not hasattr(_torchs(), "from_torchlib")
