"""ONNX files of one node, and a TensorRT that is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto, helper

from normfold.targets.tensorrt import Gpu

ADA = Gpu("a GPU", "sm89")
FLOAT = TensorProto.FLOAT


def value(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def written(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 20,
) -> Path:
    """An ONNX file."""
    graph = helper.make_graph(list(nodes), "net", list(inputs), list(outputs), list(constants))
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def relu(path: Path, batch: int | str = 2) -> Path:
    """A network of (batch,4) that does next to nothing."""
    node = helper.make_node("Relu", ["x"], ["y"], name="act/Relu")
    return written(path, [node], [value("x", batch, 4)], [value("y", batch, 4)])


def attention(path: Path) -> Path:
    """An Attention op in float32: it parses and does not build."""
    shapes = [value(name, 1, 2, 8, 16) for name in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="blocks.0.attn/Attention")
    return written(path, [node], shapes, [value("y", 1, 2, 8, 16)], opset=23)


class Config:
    """What a builder's configuration was told."""

    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.hardware_compatibility_level: Any = None
        self.blob: bytes | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, blob: bytes) -> bytes | None:
        return None if blob == b"damaged" else blob

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.blob = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.blob or b"") + b"+timings")


def tensorrt(version: str) -> ModuleType:
    """As much of the module `tensorrt` as is asked before anything is built."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.Builder = object
    module.BuilderFlag = SimpleNamespace(VERSION_COMPATIBLE="version compatible")
    module.HardwareCompatibilityLevel = SimpleNamespace(
        AMPERE_PLUS="ampere", SAME_COMPUTE_CAPABILITY="same"
    )
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    assert isinstance(module, ModuleType)
    return module
