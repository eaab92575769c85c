"""8-bit floats for TensorRT: what files hold, that their bytes compute what the simulation does, and engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from normfold.conversion import Result
from normfold.errors import UsageError
from normfold.judge.agreement import float_outputs
from normfold.report.verdict import AgreementCheck
from normfold.targets.runtime import RuntimeSession
from normfold.targets.tensorrt import Backend
from normfold.targets.tensorrt.sidecar import Sidecar
from tests.nets import Compose, perturb
from tests.ranges.nets import Attention

GENERATOR = torch.Generator().manual_seed(0)
ROWS, IMAGES = (
    torch.randn(48, 32, generator=GENERATOR),
    torch.randn(24, 3, 16, 16, generator=GENERATOR),
)
FLOAT8, HALF = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT16


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16)
    )


def narrow() -> nn.Module:
    """Its ends are too narrow for kernels."""
    return nn.Sequential(
        nn.Linear(32, 8),
        nn.ReLU(),
        nn.Linear(8, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.Linear(32, 5),
    )


def convnet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(x + m.second(F.relu(m.first(x))))
        return m.head(m.depthwise(x).mean((2, 3)))  # type: ignore[no-any-return]

    return Compose(
        forward,
        stem=nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)),
        first=nn.Conv2d(32, 32, 3, padding=1, groups=2),
        second=nn.Conv2d(32, 32, 3, padding=1),
        depthwise=nn.Conv2d(32, 32, 3, groups=32),
        head=nn.Linear(32, 16),
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]


class Loud(nn.Module):
    """Activations of 1e4 in half precision, which holds 6.5e4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)) * 1e4) * 1e-4  # type: ignore[no-any-return]


NETS: dict[
    str, tuple[Callable[[], nn.Module], Tensor, str, int]
] = {  # and how many weights are in 8 bits
    "mlp": (mlp, ROWS, "trt-rtx", 3),
    "narrow": (narrow, ROWS, "trt-rtx", 1),
    "vit": (Attention, IMAGES, "trt-rtx", 2),
    "convolutions": (convnet, IMAGES, "trt", 3),
    "convolutions-rtx": (convnet, IMAGES, "trt-rtx", 1),
    "tied": (Tied, ROWS, "trt", 1),
    "stored-in-half": (lambda: mlp().half(), ROWS.half(), "trt", 3),
    "loud": (Loud, ROWS, "trt", 2),
}


def converted(name: str, folder: Path, **options: Any) -> Result:
    build, data, target, _ = NETS[name]
    torch.manual_seed(0)
    given = {"quantize": "fp8", "data": (data,), "target": (target,), "output": folder, **options}
    return normfold.convert(perturb(build()).eval(), **given)


@pytest.mark.parametrize("name", NETS)
def test_the_bytes_compute_what_the_simulation_does(name: str, tmp_path: Path) -> None:
    result = converted(name, tmp_path)
    assert result.ok, result.report.failures()
    (made,) = result.report.quantization
    (artefact,) = result.report.artefacts
    assert artefact.verdict.state == "pass"
    assert "standing in for TensorRT" in artefact.verdict.why
    model = onnx.load(artefact.path)
    stored = {item.name: item for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = [x for x in stored.values() if x.data_type == FLOAT8 and len(x.dims) > 1]
    assert len(weights) == NETS[name][3]
    assert all(len(x.raw_data) == torch.Size(x.dims).numel() for x in weights), "a byte each"
    fed = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul")
        and [makers[x].op_type for x in node.input[:2] if x in makers] == ["DequantizeLinear"] * 2
    ]
    assert len(fed) == made.weights == made.activations, (
        "right in front of the op, for TensorRT's fusion"
    )
    (check,) = (x for x in result.report.checks if isinstance(x, AgreementCheck))
    assert check.kind == "onnxruntime-none"
    assert min(check.snr_db) > made.drift["snr_db"] - 1.5  # half precision beside it


def test_everything_beside_the_grids_is_in_half_precision(tmp_path: Path) -> None:
    result = converted("vit", tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(result.report.artefacts[0].path))
    kinds = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    kinds |= {item.name: item.data_type for item in model.graph.initializer}
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["Cast"] == 2, "of the input and of the output"
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert kinds[node.input[1]] == HALF, "TensorRT fuses scales of the type around them"
        if node.op_type in ("Softmax", "LayerNormalization", "MatMul"):
            assert kinds[node.output[0]] == HALF
    assert result.report.lowered == "float16"


def test_onnxruntime_runs_such_files_as_they_are(tmp_path: Path) -> None:
    """Its optimisations give a tenth of the right numbers for float32 beside 8-bit floats, or refuse to load."""
    result = converted("mlp", tmp_path, precision="fp32")
    (path,) = result.artifacts
    (wanted,) = float_outputs(result.graph, [(ROWS,)])
    for level in ("all", "none"):
        (got,) = RuntimeSession(path, level).run([ROWS])
        torch.testing.assert_close(got, wanted[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_engines(name: str, tmp_path: Path, rtx: Backend) -> None:
    """Every Q and every weight is a layer of 8-bit floats in the typed network; older GPUs are left out."""
    result = converted(name, tmp_path, export=("trt",))
    assert result.ok, result.report.failures()
    sidecar = Sidecar.read(next(x for x in result.artifacts if x.suffix == ".engine"))
    assert sidecar.layers["fp8"] == 2 * NETS[name][3]
    assert sidecar.targets == ("sm89", "sm120", "sm121")
    assert sidecar.precision == "float16"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"target": ("ort-x86",)},
            r"`fp8` is not for onnxruntime[\s\S]*`fp8` is for `--target trt`",
        ),
        ({"target": ()}, "`fp8` is not for onnxruntime"),
        ({"target": (), "export": ()}, "`fp8` is not for onnxruntime"),
        ({"target": (), "export": ("pt2",)}, "integers are not written as pt2"),
        ({"target_size": 0.5}, "formats by layer"),
        ({"activation_bits": 4}, "not on integer grids"),
        ({"opset": 18}, "opset 18 has no 8-bit floats"),
        ({"export": ("trt",), "gpu_arch": ("sm86",)}, "GPUs before sm89"),
    ],
)
def test_what_is_refused(options: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=part):
        converted("mlp", tmp_path, **options)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_network_without_any_kernel_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(4608, 5)
    )
    with pytest.raises(UsageError, match="no layer of this network") as raised:
        normfold.convert(
            net.eval(), quantize="fp8", data=(IMAGES,), target="trt-rtx", output=tmp_path
        )
    assert "`--target trt` has other kernels" in str(raised.value.hint)


def test_integers_beside_half_precision(tmp_path: Path) -> None:
    """TensorRT takes the types of the file: 8-bit integers need not stand beside float32."""
    result = converted("mlp", tmp_path, quantize="int8", precision="fp16")
    assert result.ok, result.report.failures()
    stored = onnx.load(result.report.artefacts[0].path).graph.initializer
    assert {x.data_type for x in stored} == {HALF, onnx.TensorProto.INT8}
    with pytest.raises(UsageError, match="contradict each other"):
        converted("mlp", tmp_path, quantize="int8", precision="fp16", target=("ort-x86",))


@pytest.mark.parametrize(
    ("name", "options", "warned"),
    [
        ("vit", {"quantize": "int8"}, True),
        ("vit", {}, False),
        ("mlp", {"quantize": "int8"}, False),
        ("vit", {"quantize": "int8", "target": ("ort-x86",)}, False),
    ],
)
def test_what_did_not_pay_is_said(
    name: str, options: dict[str, Any], warned: bool, tmp_path: Path
) -> None:
    (made,) = converted(name, tmp_path, **options).report.quantization
    assert any("half the speed" in text for text in made.warnings) == warned


def test_layers_that_stay_are_named(tmp_path: Path) -> None:
    (made,) = converted("narrow", tmp_path).report.quantization
    assert list(made.blocked) == ["0", "2", "5"]
    assert made.blocked["5"] == "32 inputs and 5 outputs, multiples of 16 have one"
