"""ONNX files whose weights lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import normfold
from normfold.errors import LoadError
from normfold.targets.untrusted import require_own_data


def written(path: Path, location: str) -> Path:
    """An Add of a weight that lies at ``location``."""
    weight = numpy_helper.from_array(np.ones(4, "f4"), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin"]
)
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = written(folder / "m.onnx", location)
    with pytest.raises(LoadError, match="outside its folder"):
        require_own_data(path)
    with pytest.raises(LoadError, match="outside its folder"):
        normfold.bench(path, path)
    with pytest.raises(LoadError, match="outside its folder"):
        normfold.verify("json:loads", path)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(np.ones(4, "f4").tobytes())
    require_own_data(written(tmp_path / "m.onnx", "m.onnx.data"))
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0].name == "w"


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(LoadError, match="not an ONNX file"):
        require_own_data(tmp_path / "m.onnx")
