"""Running files through onnxruntime: types, names, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.targets import RuntimeSession, run_onnx


def write(path: Path, op: str, kind: int, inputs: int = 1) -> Path:
    names = ["a", "b"][:inputs]
    infos = [oh.make_tensor_value_info(name, kind, ["N", 4]) for name in names]
    graph = oh.make_graph(
        [oh.make_node(op, names, ["y"])], "g", infos, [oh.make_tensor_value_info("y", kind, None)]
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, onnx.TensorProto.FLOAT),
        (torch.float16, onnx.TensorProto.FLOAT16),
        (torch.float64, onnx.TensorProto.DOUBLE),
        (torch.bfloat16, onnx.TensorProto.BFLOAT16),
        (torch.int64, onnx.TensorProto.INT64),
        (torch.bool, onnx.TensorProto.BOOL),
    ],
)
def test_tensors_keep_their_type(tmp_path: Path, dtype: torch.dtype, kind: int) -> None:
    x = torch.tensor([[0.0, 1.0, -2.5, 3.0]]).to(dtype)
    for level in ("all", "none"):
        session = RuntimeSession(write(tmp_path / "net.onnx", "Identity", kind), level)
        (y,) = session.run([x])
        assert y.dtype == dtype
        assert torch.equal(y, x)


def test_an_op_without_kernel_is_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", "Erf", onnx.TensorProto.BFLOAT16)
    with pytest.raises(EnvironmentMissing, match="no CPU kernel"):
        RuntimeSession(path)


def test_inputs_by_order_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", "Sub", onnx.TensorProto.FLOAT, inputs=2)
    a, b = np.full((2, 4), 3, np.float32), np.ones((2, 4), np.float32)
    assert (run_onnx(path, [a, b])[0] == 2).all()
    assert (run_onnx(path, {"b": a, "a": b}, level="none", threads=1)[0] == -2).all()
    session = RuntimeSession(path)
    assert torch.equal(
        session.run({"a": torch.ones(1, 4), "b": torch.ones(1, 4)})[0], torch.zeros(1, 4)
    )


def test_wrong_inputs(tmp_path: Path) -> None:
    session = RuntimeSession(write(tmp_path / "net.onnx", "Erf", onnx.TensorProto.FLOAT))
    with pytest.raises(UsageError, match="it takes a"):
        session.run([torch.ones(1, 4), torch.ones(1, 4)])
    with pytest.raises(UsageError, match="it takes a"):
        session.run({"x": torch.ones(1, 4)})
    with pytest.raises(ExportError):
        session.run([torch.ones(1, 5)])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("text")
    with pytest.raises(ExportError, match="refuses"):
        RuntimeSession(path)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentMissing, match="not installed"):
        RuntimeSession(tmp_path / "net.onnx")


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`all` or `none`"):
        RuntimeSession(tmp_path / "net.onnx", "some")  # type: ignore[arg-type]
