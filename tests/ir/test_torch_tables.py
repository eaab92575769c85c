"""torch's tables are made once, and torch is as it was behind each call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold.ir import capture, torch_tables
from normfold.ir.torch_tables import kept_tables
from normfold.targets.onnx import export_onnx

NAMES = [
    ("torch.export.exported_program", "_override_composite_implicit_decomp"),
    ("torch.export.exported_program", "_collect_all_valid_cia_ops"),
    ("torch.export.decomp_utils", "_collect_all_valid_cia_ops_for_aten_namespace"),
]


def values() -> list[Any]:
    return [getattr(sys.modules[module], name) for module, name in NAMES]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_torch_is_put_back() -> None:
    before = values()
    with kept_tables():
        assert all(a is not b for a, b in zip(values(), before, strict=True))
        with kept_tables():
            pass
        assert values() != before
    assert values() == before
    with pytest.raises(ValueError, match="here"), kept_tables():
        raise ValueError("here")
    assert values() == before


def test_the_registry_of_onnx_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(net(), (torch.randn(2, 3, 8, 8),))
    export_onnx(graph, tmp_path / "a.onnx")
    registry: Any = sys.modules[torch_tables._REGISTRY].ONNXRegistry
    read = vars(registry)["from_torchlib"]

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(registry, "from_torchlib", staticmethod(refuse))
    export_onnx(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    monkeypatch.undo()
    assert vars(registry)["from_torchlib"] is read


def test_captures_are_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def text() -> str:
        torch.manual_seed(0)
        return str(capture(net(), (torch.randn(2, 3, 8, 8),)).module.code)

    kept = [text(), text()]
    monkeypatch.setattr(torch_tables, "_replacements", lambda: iter(()))
    assert kept == [text()] * 2


def test_a_torch_without_those_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in NAMES:
        monkeypatch.delattr(sys.modules[module], name)
    with kept_tables(exports=True):
        assert not any(hasattr(sys.modules[module], name) for module, name in NAMES)
