"""Counting ops, norms and left-over per-channel arithmetic in ONNX files, ours or anyone's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto, numpy_helper

from normfold.errors import UsageError
from normfold.targets import census
from tests.targets.nets import ConvNet, perturb


def model(
    nodes: list[onnx.NodeProto], shape: list[int | str], **constants: object
) -> onnx.ModelProto:
    values = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    x = oh.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = oh.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = oh.make_graph(nodes, "g", [x], [y], values)
    made = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)])
    return onnx.shape_inference.infer_shapes(made)


@pytest.mark.parametrize(
    ("op", "constant", "counted"),
    [
        ("Mul", np.ones((1, 8, 1, 1), np.float32), True),
        ("Add", np.ones((8, 1, 1), np.float32), True),
        ("Sub", np.ones((8, 1, 1), np.float16), True),
        ("Div", np.ones(4, np.float32), True),  # the last axis: channels of a channels-last tensor
        ("Add", np.ones((5, 1), np.float32), False),  # rows
        ("Mul", np.float32(2), False),
        ("Mul", np.ones((1, 1, 1), np.float32), False),
        ("Add", np.ones((8, 5, 4), np.float32), False),  # a bias map
        ("Add", np.ones((8, 1, 1), np.int64), False),
        ("Pow", np.ones((8, 1, 1), np.float32), False),
    ],
)
def test_what_counts_as_per_channel(op: str, constant: object, counted: bool) -> None:
    node = oh.make_node(op, ["x", "c"], ["y"], name="n")
    found = census(model([node], ["N", 8, 5, 4], c=constant)).per_channel
    assert [(p.op, p.node) for p in found] == ([(op, "n")] if counted else [])


def test_a_constant_is_found_behind_ops_that_move_it() -> None:
    nodes = [
        oh.make_node("Constant", [], ["c"], value_floats=[1.0] * 8),
        oh.make_node("Unsqueeze", ["c", "axes"], ["d"]),
        oh.make_node("Mul", ["d", "x"], ["y"]),
    ]
    found = census(model(nodes, ["N", 8, 5, 4], axes=np.array([1, 2]))).per_channel
    assert [(p.size, p.axis) for p in found] == [(8, -3)]


def test_the_bias_of_a_linear_layer_is_not_left_over() -> None:
    weight, bias = np.ones((4, 4), np.float32), np.ones(4, np.float32)
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Add", ["a", "b"], ["c"], name="bias"),
        oh.make_node("Add", ["c", "b"], ["y"], name="second"),
    ]
    found = census(model(nodes, ["N", 3, 4], w=weight, b=bias)).per_channel
    assert [p.node for p in found] == ["second"]


def test_a_raw_export_of_the_original(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    program = torch.onnx.export(
        perturb(ConvNet()), (x,), dynamo=True, optimize=False, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "raw.onnx")
    found = census(tmp_path / "raw.onnx")
    assert found.batch_norms == found.norms["BatchNormalization"] == 2
    assert found.nodes == sum(found.ops.values())
    assert found.dynamic == {}
    assert found.file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert found.to_dict()["bytes"] == found.file_bytes


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", None])
def test_other_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="ONNX"):
        census(path)
