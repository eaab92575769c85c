"""timm's networks in integers: what onnxruntime runs in them, and engines that TensorRT-RTX builds from them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import normfold
from benchmarks import models
from normfold.job import EngineOptions, Quantize, Source
from normfold.job.presets import preset
from normfold.ranges.calibration import Calibrated, calibrate
from normfold.steps.quantize import make_integers
from normfold.targets.integer_census import integer_census
from normfold.targets.onnx import export_onnx

pytestmark = pytest.mark.family
OPTIONS = Quantize("int8")
DATA = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
# what has no kernel: BatchNorms in front of ReLUs that nothing can take in stay multiplications and additions
FLOATS: dict[str, set[str]] = {"densenet121": {"Mul", "Add", "Concat"}}
MODELS = {
    "resnet18": {"Conv": 20, "Add": 8},
    "resnet50": {"Conv": 53, "Add": 16},
    "mobilenetv2_100": {"Conv": 52, "Add": 10},
    "efficientnet_b0": {"Conv": 81, "Add": 9, "Sigmoid": 65, "Mul": 65},
    "densenet121": {"Conv": 120},
}


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest) -> tuple[str, Calibrated]:
    graph = normfold.capture(models.make(request.param), (torch.randn(2, 3, 224, 224),))
    folded, _ = normfold.run(graph, preset("folded"), verify="off")
    return request.param, calibrate(folded, OPTIONS, Source(data=DATA))


def test_onnxruntime_runs_every_convolution_in_integers(
    made: tuple[str, Calibrated], tmp_path: Path
) -> None:
    name, calibrated = made
    graph, *_ = make_integers(calibrated, OPTIONS, "ort-x86", data=True)
    export_onnx(graph, tmp_path / "net.onnx")
    census = integer_census(tmp_path / "net.onnx")
    for kind, count in MODELS[name].items():
        assert census.integer[kind] == count
    assert "Conv" not in census.floats
    assert set(census.floats) <= FLOATS.get(name, set())


def test_tensorrt_builds_an_engine(made: tuple[str, Calibrated], tmp_path: Path) -> None:
    """In 8 bits, on a CPU; from a file without uint8, without integer biases, without zero points."""
    pytest.importorskip("tensorrt_rtx")
    name, _ = made
    result = normfold.convert(
        models.make(name),
        inputs=[torch.randn(2, 3, 224, 224)],
        export="trt",
        output=tmp_path,
        engine=EngineOptions(backend="tensorrt-rtx"),
        data=DATA,
        quantization=OPTIONS,
    )
    assert result.ok
    (engine,) = tmp_path.glob("*.engine")
    assert engine.stat().st_size > 1e6
    graph = onnx.load(next(tmp_path.glob("*.trt.onnx"))).graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    assert "uint8" not in {str(value.dtype) for value in stored.values()}
    grids = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(grids) > 50
    for node in grids:
        zero = stored[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        assert zero is None or not zero.any()
        assert node.input[0] not in stored or stored[node.input[0]].dtype == "int8"
