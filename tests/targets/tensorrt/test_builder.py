"""Engines of small networks, really built by TensorRT-RTX on this machine's CPU."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from normfold.errors import ExportError, UsageError
from normfold.ir import Graph
from normfold.job import EngineOptions
from normfold.progress import Progress
from normfold.targets import export_onnx
from normfold.targets.tensorrt import Backend, Built, build
from normfold.targets.tensorrt.builder import Binding
from normfold.targets.tensorrt.profiles import Shapes
from tests.targets.nets import ConvNet, Transformer, folded, perturb
from tests.targets.tensorrt.fakes import relu

IMAGES: dict[str, Shapes] = {"image": ((1, 3, 16, 16), (8, 3, 16, 16), (64, 3, 16, 16))}


def conv_net(dtype: torch.dtype = torch.float32, **options: Any) -> Graph:
    module = perturb(ConvNet()).to(dtype)
    return folded(module, torch.randn(2, 3, 16, 16, dtype=dtype), **options)


def made(graph: Graph, folder: Path, backend: Backend, *args: Any, **options: Any) -> Built:
    exported = export_onnx(graph, folder / "net.onnx", target=backend.target)
    return build(exported.path, backend, *args, origins=exported.origins, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_are_those_of_the_graph(dtype: torch.dtype, tmp_path: Path, rtx: Backend) -> None:
    name = str(dtype).removeprefix("torch.")
    built = made(conv_net(dtype), tmp_path, rtx, None, IMAGES)
    assert [(item.kind, item.dtype, item.shape) for item in built.bindings] == [
        ("input", name, (-1, 3, 16, 16)),
        ("output", name, (-1, 5)),
    ]
    floats = {kind for kind in built.layers if "float" in kind}
    assert floats == {name}
    assert len(built.plan) > 10_000
    assert len(built.sha256) == 64
    assert built.seconds > 0


def test_a_network_with_norms_attention_and_a_fixed_batch(tmp_path: Path, rtx: Backend) -> None:
    graph = folded(perturb(Transformer()), torch.randn(2, 3, 8, 8), dynamic=None)
    built = made(graph, tmp_path, rtx)
    assert [item.shape for item in built.bindings] == [(2, 3, 8, 8), (2, 4)]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.norm(self.table(ids))
        return y


def test_a_dynamic_sequence(tmp_path: Path, rtx: Backend) -> None:
    free = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    graph = folded(Tokens().eval(), torch.zeros(2, 6, dtype=torch.long), dynamic=free)
    sizes: dict[str, Shapes] = {"ids": ((1, 1), (2, 16), (4, 32))}
    built = made(graph, tmp_path, rtx, None, sizes)
    assert built.bindings[0] == Binding("ids", "input", "int64", (-1, -1))
    assert built.bindings[1].shape == (-1, -1, 8)


def test_the_gpus_that_were_asked_for(tmp_path: Path, rtx: Backend) -> None:
    path = relu(tmp_path / "net.onnx")
    few = build(path, rtx, EngineOptions(gpu_arch=("sm89", "sm120"), workspace=512))
    assert few.plan != build(path, rtx).plan
    with pytest.raises(UsageError, match="`sm90`"):
        build(path, rtx, EngineOptions(gpu_arch=("sm90",)))


def test_weights_beside_the_file(tmp_path: Path, rtx: Backend) -> None:
    graph = folded(nn.Linear(64, 64).eval(), torch.randn(2, 64), dynamic=None, text="bake")
    exported = export_onnx(graph, tmp_path / "net.onnx", target=rtx.target, external_data=True)
    assert exported.data_path is not None
    assert len(build(exported.path, rtx).plan) > exported.data_path.stat().st_size > 16_000
    exported.data_path.unlink()
    with pytest.raises(ExportError, match="refuses the ONNX file"):
        build(exported.path, rtx)


def test_progress_only_grows(tmp_path: Path, rtx: Backend) -> None:
    said: list[Progress] = []
    build(relu(tmp_path / "net.onnx"), rtx, say=said.append)
    shares = [event.done for event in said]
    assert shares == sorted(shares)
    assert shares[-1] > 80
    assert all(event.stage == "building the engine" and event.total == 100 for event in said)


def test_control_c_ends_a_build(tmp_path: Path, rtx: Backend) -> None:
    """It arrives in the middle of a callback, whose exceptions the library swallows."""
    path, said = relu(tmp_path / "net.onnx"), list[Progress]()

    def interrupt(line: Progress) -> None:
        said.append(line)
        if len(said) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    # a shell that put the tests in the background has them ignore it
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(path, rtx, say=interrupt)
        assert len(said) < 10
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert build(path, rtx).plan
    finally:
        signal.signal(signal.SIGINT, outer)


def test_a_build_in_another_thread(tmp_path: Path, rtx: Backend) -> None:
    found: list[Built] = []
    path = relu(tmp_path / "net.onnx")
    thread = threading.Thread(target=lambda: found.append(build(path, rtx)))
    thread.start()
    thread.join(60)
    assert found[0].bindings == build(path, rtx).bindings


def test_the_same_file_gives_the_same_bindings(tmp_path: Path, rtx: Backend) -> None:
    path = relu(tmp_path / "net.onnx", "batch")
    sizes: dict[str, Shapes] = {"x": ((1, 4), (2, 4), (3, 4))}
    built = build(path, rtx, None, sizes)
    assert built.bindings == (
        Binding("x", "input", "float32", (-1, 4)),
        replace(Binding("x", "input", "float32", (-1, 4)), name="y", kind="output"),
    )


def test_what_the_library_prints_is_kept_off_stdout(
    tmp_path: Path, rtx: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a Clip with one bound in half precision it says so, past Python and its own logger."""
    least = helper.make_tensor("least", TensorProto.FLOAT16, [], [0.5])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 3]) for name in "xy"]
    node = helper.make_node("Clip", ["x", "least"], ["y"])
    graph = helper.make_graph([node], "clip", values[:1], values[1:], [least])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "clip.onnx",
    )
    build(tmp_path / "clip.onnx", rtx)
    said = capfd.readouterr()
    assert said.out == ""
    assert "WARNING" in said.err
