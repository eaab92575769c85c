"""What parser and builder refuse, said in the user's terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from normfold.errors import ExportError
from normfold.job import EngineOptions
from normfold.targets import export_onnx
from normfold.targets.tensorrt import Backend, build
from normfold.targets.tensorrt.messages import tidy
from tests.targets.nets import Transformer, folded, perturb
from tests.targets.tensorrt.fakes import attention, relu, value, written


def refused(path: Path, backend: Backend, options: EngineOptions | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        build(path, backend, options)
    text = str(caught.value)
    assert "_src/" not in text  # the builder's own files help nobody
    assert text.count("\nhint: ") == 1
    return text


def cut(path: Path) -> Path:
    relu(path)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def noise(path: Path) -> Path:
    path.write_bytes(b"no network at all" * 9)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (cut, "damaged"),
        (noise, "damaged"),
        (empty, "empty or cut off"),
        (lambda path: path, "no such file"),
    ],
)
def test_what_is_no_file_of_a_network(
    spoil: Callable[[Path], Path], hint: str, tmp_path: Path, rtx: Backend
) -> None:
    text = refused(spoil(tmp_path / "net.onnx"), rtx)
    assert str(tmp_path / "net.onnx") in text
    assert hint in text


def unsupported(path: Path) -> Path:
    node = helper.make_node("Det", ["x"], ["y"], name="head/Det")
    return written(path, [node], [value("x", 2, 4, 4)], [value("y", 2)])


def foreign(path: Path) -> Path:
    node = helper.make_node("Magic", ["x"], ["y"], name="head/Magic", domain="mine")
    return written(path, [node], [value("x", 2)], [value("y", 2)])


def asymmetric(path: Path) -> Path:
    constants = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(3, np.int8), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="head/Quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return written(path, nodes, [value("x", 2, 4)], [value("y", 2, 4)], constants)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (unsupported, ["node `head/Det`", "UNSUPPORTED_NODE (Det)\n", "has no such op"]),
        (foreign, ["node `head/Magic`", "(Magic)", "has no such op"]),
        (asymmetric, ["node `head/Quantize`", "zero points must be 0"]),
    ],
)
def test_what_the_parser_has_not(
    make: Callable[[Path], Path], parts: list[str], tmp_path: Path, rtx: Backend
) -> None:
    text = refused(make(tmp_path / "net.onnx"), rtx)
    assert str(tmp_path / "net.onnx") in text
    for part in ("parser refuses", *parts):
        assert part in text, text


class Determinant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.det(x * self.scale)
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = Determinant()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        return y


def test_the_users_own_line_is_named(tmp_path: Path, rtx: Backend) -> None:
    graph = folded(Net().eval(), torch.randn(2, 4, 4), dynamic=None, text="bake")
    exported = export_onnx(graph, tmp_path / "net.onnx", target=rtx.target)
    with pytest.raises(ExportError) as caught:
        build(exported.path, rtx, origins=exported.origins)
    where = caught.value.where or ""
    for part in (
        "node `head/Det`",
        "in module `head`",
        "test_messages.py",
        "torch.linalg.det(x * self.scale)",
    ):
        assert part in where, where
    node = next(node.name for node in graph.nodes if "det" in str(node.target))
    assert f"from `{node}`" in where


def test_a_build_that_fails_names_the_module_too(tmp_path: Path, rtx: Backend) -> None:
    """One Attention op in float32: what the target of onnxruntime writes, and this builder has no kernel for."""
    graph = folded(perturb(Transformer()), torch.randn(2, 3, 8, 8), dynamic=None)
    exported = export_onnx(graph, tmp_path / "net.onnx", opset=23)
    assert exported.census.ops["Attention"] == 2
    with pytest.raises(ExportError) as caught:
        build(exported.path, rtx, origins=exported.origins)
    text = str(caught.value)
    for part in (
        "could not be built",
        "node `blocks.0/Attention`",
        "in module `blocks.0`",
        "nets.py",
        "scaled_dot_product_attention",
        "attention must be plain ops",
    ):
        assert part in text, text


def test_a_build_that_fails_without_origins(tmp_path: Path, rtx: Backend) -> None:
    text = refused(attention(tmp_path / "net.onnx"), rtx)
    assert f"at {tmp_path / 'net.onnx'}" in text
    assert "attention must be plain ops" in text


def product(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=kind),
        helper.make_node("MatMul", ["a", "a"], ["b"], name="fc/MatMul"),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    return written(path, nodes, [value("x", 4, 4)], [value("y", 4, 4)])


@pytest.mark.parametrize(
    ("kind", "options", "hint"),
    [
        (TensorProto.FLOAT, EngineOptions(gpu_arch=("sm75",)), "--precision fp16"),
        (TensorProto.BFLOAT16, EngineOptions(gpu_arch=("sm75",)), "bf16 needs sm80"),
        (TensorProto.FLOAT, EngineOptions(workspace=1), "--workspace"),
    ],
)
def test_what_the_options_do_not_allow(
    kind: int, options: EngineOptions, hint: str, tmp_path: Path, rtx: Backend
) -> None:
    path = product(tmp_path / "net.onnx", kind)
    assert hint in refused(path, rtx, options)
    assert build(path, rtx).plan  # it is the option


def test_a_dynamic_size_without_a_profile(tmp_path: Path, rtx: Backend) -> None:
    text = refused(relu(tmp_path / "net.onnx", "batch"), rtx)
    assert "--dynamic NAME:AXIS=MIN..OPT..MAX" in text


def test_noise_is_left_out() -> None:
    said = (
        "ITensor::getDimensions: Error Code 4: API Usage Error (a/Mul: must have same input types. "
        "In validateTypes at /_src/optimizer/common/nodes/elementWiseNode.cpp:40) "
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime ( (cudaError 35: no driver))"
    )
    assert tidy(said) == (
        "ITensor::getDimensions: Error Code 4: API Usage Error (a/Mul: must have same input types)"
    )
    assert len(tidy("word " * 500)) == 400
