"""Detectors: whole where torch.export can, with NMS inside; else the parts are named, and one converts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import normfold
from normfold.errors import CaptureError
from tests.zoo.detectors import torchvision_detector, yolo

pytestmark = pytest.mark.family
FREE = ("images:2", "images:3")


def error(path: Path, module: Any, images: Tensor) -> float:
    """Largest relative error of the file against float64."""
    session = onnxruntime.InferenceSession(path)
    with torch.no_grad():
        found = pytree.tree_leaves(copy.deepcopy(module).double()(images.double()))
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    pairs = zip(outputs, [x.numpy() for x in found], strict=True)
    return max(float(np.abs(y - r).max() / np.abs(r).max()) for y, r in pairs)


@pytest.mark.parametrize("to", ["folded", "rmsnorm"])
@pytest.mark.parametrize("dynamic", [(), FREE])
@pytest.mark.parametrize("form", ["raw", "named", "nms"])
def test_heads_of_yolo(tmp_path: Path, form: str, dynamic: tuple[str, ...], to: str) -> None:
    module = yolo(form)
    # zeros tie all scores: what is kept then is not decided
    verify: Any = "off" if form == "nms" else "final"
    result = normfold.convert(
        module, to, inputs=["1x3x64x96"], dynamic=dynamic, output=tmp_path, verify=verify
    )
    assert result.ok, result.report.checks
    (path,) = (path for path in result.artifacts if path.suffix == ".onnx")
    assert "BatchNormalization" not in result.report.census
    for shape in ((2, 3, 64, 96), (3, 3, 64, 96), *(((1, 3, 96, 32),) if dynamic else ())):
        assert error(path, module, torch.randn(*shape)) < 1e-4


TORCHVISION = (
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)


@pytest.mark.parametrize("name", TORCHVISION)
def test_what_cannot_be_captured_whole(tmp_path: Path, name: str) -> None:
    module = torchvision_detector(name)
    given: dict[str, Any] = {"inputs": ["images.0:3x64x96"], "output": tmp_path}
    with pytest.raises(CaptureError, match="`--module backbone`"):
        normfold.convert(module, batch="static", **given)
    result = normfold.convert(module, part="backbone", **given)
    assert result.ok, result.report.checks
    (path,) = (path for path in result.artifacts if path.suffix == ".onnx")
    size = onnxruntime.InferenceSession(path).get_inputs()[0].shape[2:]
    assert error(path, module.backbone, torch.randn(3, 3, *size)) < 1e-4
