"""No file is published without a verdict of its own bytes: what is damaged on the way is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import normfold
from normfold.judge.files import Judge
from normfold.report import Check
from normfold.report.verdict import AgreementCheck, Verdict
from normfold.targets import RuntimeSession
from normfold.targets.order import Draft
from normfold.targets.tensorrt import Gpu, backend, write
from tests.cli.nets import tiny
from tests.ranges.nets import made_residual
from tests.train.nets import patches

Damage = Callable[[Path], None]


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Damage], None]:
    """Damage a file between writing and judging."""

    def by(damage: Damage) -> None:
        judge = Judge.judge

        def damaging(self: Judge, draft: Draft, emit: Any) -> Verdict:
            damage(draft.path)
            return judge(self, draft, emit)

        monkeypatch.setattr(Judge, "judge", damaging)

    return by


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def integers(out: Path, **options: Any) -> normfold.Result:
    samples = np.random.default_rng(0).normal(size=(64, 3, 12, 10)).astype("float32")
    given: dict[str, Any] = {"quantize": "int8", "data": (torch.from_numpy(samples),), **options}
    example = (torch.randn(2, 3, 12, 10),)
    return normfold.convert(made_residual(), output=out, inputs=example, **given)


def refused(result: normfold.Result, out: Path) -> str:
    """Why; nothing but the report was published."""
    assert not result.ok
    assert result.artifacts == []
    assert [path.suffix for path in out.iterdir()] == [".json"]
    assert result.report.exit_code == 1
    (artefact,) = [item for item in result.report.artefacts if not item.written]
    assert artefact.verdict.state == "fail"
    return artefact.verdict.why


def triple_scales(path: Path) -> None:
    model = onnx.load(path)
    scales = [item for item in model.graph.initializer if item.name.endswith("scale")]
    weights = [item for item in scales if numpy_helper.to_array(item).ndim == 1][:4]
    assert len(weights) == 4
    for item in weights:
        item.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(item), item.name))
    onnx.save(model, path)


def test_tripled_scales_of_an_integer_file(
    tmp_path: Path, damaged: Callable[[Damage], None]
) -> None:
    """Drift of the simulation and agreement with itself say nothing of the file (A1)."""
    right = integers(tmp_path / "right")
    assert right.ok
    (made,) = right.report.artefacts
    assert made.verdict.why.startswith("within the budget (")
    checks = [item for item in right.report.checks if isinstance(item, AgreementCheck)]
    assert [item.kind for item in checks] == ["onnxruntime-all", "onnxruntime-none"]
    assert all(item.simulated_db for item in checks)
    damaged(triple_scales)
    why = refused(integers(tmp_path / "wrong"), tmp_path / "wrong")
    assert why.startswith("onnxruntime-all: ")
    assert "asked for" in why


@pytest.mark.parametrize("target", ["trt", "openvino"])
def test_other_targets_have_a_verdict_of_their_own(
    target: str, tmp_path: Path, damaged: Callable[[Damage], None]
) -> None:
    kind = "openvino" if target == "openvino" else "onnxruntime-all"
    right = integers(tmp_path / "right", target=target)
    assert right.ok
    assert kind in [check.kind for check in right.report.checks]
    damaged(triple_scales)
    assert refused(integers(tmp_path / "wrong", target=target), tmp_path / "wrong")


def test_a_file_for_another_processor_is_openly_not_judged(tmp_path: Path) -> None:
    """A2: on Arm it would be run."""
    result = integers(tmp_path, target="ort-arm")
    (made,) = result.report.artefacts
    assert made.verdict.state == "not judged"
    assert made.verdict.why.startswith("not judged here (this processor is ")
    assert (result.report.exit_code, len(result.artifacts)) == (0, 2)
    strict = integers(tmp_path, target="ort-arm", require_judged=True)
    assert strict.report.exit_code == 3
    off = integers(tmp_path, target="ort-arm", verify="off")
    assert off.report.artefacts[0].verdict.why == "not judged: --verify off"


def test_a_shifted_bias_of_a_half_precision_file(
    tmp_path: Path, damaged: Callable[[Damage], None]
) -> None:
    def shift(path: Path) -> None:
        model = onnx.load(path)
        bias = next(item for item in model.graph.initializer if "bias" in item.name)
        assert bias.data_type == onnx.TensorProto.FLOAT16
        moved = numpy_helper.to_array(bias) + np.float16(2)
        bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
        onnx.save(model, path)

    options: dict[str, Any] = {"precision": "fp16", "inputs": (images(),)}
    right = normfold.convert(tiny(), output=tmp_path / "right", **options)
    assert right.report.artefacts[0].verdict.why.startswith("within 0.02 of the original")
    damaged(shift)
    wrong = normfold.convert(tiny(), output=tmp_path / "wrong", **options)
    assert "onnxruntime-all: error" in refused(wrong, tmp_path / "wrong")


def test_another_function_in_the_file_of_a_student(
    tmp_path: Path, damaged: Callable[[Damage], None]
) -> None:
    """The student's own export excuses what the runtime errs by; the original's, another network, nothing."""

    def approximate(path: Path) -> None:
        model = onnx.load(path)
        node = next(item for item in model.graph.node if item.op_type == "Gelu")
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
        onnx.save(model, path)

    options: dict[str, Any] = {
        "to": "prepbn",
        "inputs": (images(),),
        "data": (torch.randn(64, 3, 8, 8),),
        "training": normfold.Train(steps=4, batch_size=16, evaluations=1),
        "max_drop": 100.0,
    }
    right = normfold.convert(patches(), output=tmp_path / "right", **options)
    assert right.report.artefacts[0].verdict.why.startswith("equivalent to the trained student")
    damaged(approximate)
    wrong = normfold.convert(patches(), output=tmp_path / "wrong", **options)
    assert "onnxruntime-all: error" in refused(wrong, tmp_path / "wrong")


def test_a_program_with_another_weight(tmp_path: Path, damaged: Callable[[Damage], None]) -> None:
    """A2: programs are loaded again and run."""

    def change(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            parts = {item.filename: archive.read(item) for item in archive.infolist()}
        name = max((part for part in parts if "/weight_" in part), key=lambda key: len(parts[key]))
        values = np.frombuffer(parts[name], np.float32).copy()
        values[0] += 0.5
        with zipfile.ZipFile(path, "w") as archive:
            for part, data in parts.items():
                archive.writestr(part, values.tobytes() if part == name else data)

    right = normfold.convert(tiny(), export="pt2", output=tmp_path / "right", inputs=(images(),))
    assert right.report.artefacts[0].verdict.why.startswith("equivalent in PyTorch ")
    damaged(change)
    wrong = normfold.convert(tiny(), export="pt2", output=tmp_path / "wrong", inputs=(images(),))
    assert refused(wrong, tmp_path / "wrong").startswith("pt2: error")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """A GPU, and an engine that answers like the ONNX file it was built from."""

    class Stand:
        wrong = 0.0
        asked: ClassVar[list[Any]] = []

        def __init__(self, path: Path) -> None:
            self.session = RuntimeSession(path.with_suffix(".trt.onnx"), "none")
            self.bindings = Stand.asked

        def layers(self) -> dict[str, int]:
            return {}

        def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
            return [y + Stand.wrong * y.abs().max() for y in self.session.run(inputs)]

    same = write.require_same

    def remember(asked: Any, found: Any, engine: Path) -> None:
        Stand.asked = list(asked)
        same(asked, found, engine)

    monkeypatch.setattr(write, "require_same", remember)
    monkeypatch.setattr(write, "Engine", Stand)
    for module in (backend, write):
        monkeypatch.setattr(module, "probe", lambda: Gpu("a GPU", "sm89"))
    return Stand


def engine_of(result: normfold.Result) -> Any:
    (found,) = [item for item in result.report.artefacts if item.path.endswith(".engine")]
    return found


def test_an_integer_engine_is_judged_by_the_budget_of_integers(
    tmp_path: Path, gpu: type[Any]
) -> None:
    """A3: ulps of float32 are no yardstick for eight bits."""
    options: dict[str, Any] = {"export": "trt", "target": "trt-rtx"}
    right = integers(tmp_path / "right", **options)
    assert right.ok, right.report.failures()
    assert engine_of(right).verdict.why.startswith("within the budget (")
    checks = [check for check in right.report.checks if check.kind == "tensorrt"]
    assert [type(check) for check in checks] == [AgreementCheck]
    gpu.wrong = 1.0
    wrong = integers(tmp_path / "wrong", **options)
    assert not wrong.ok
    assert engine_of(wrong).verdict.state == "fail"
    assert wrong.artifacts == []


def test_a_float_engine_with_one_output_wrong(tmp_path: Path, gpu: type[Any]) -> None:
    options: dict[str, Any] = {"export": "trt", "target": "trt-rtx", "inputs": (images(),)}
    right = normfold.convert(tiny(), output=tmp_path / "right", **options)
    assert engine_of(right).verdict.why.startswith("equivalent in TensorRT-RTX")
    gpu.wrong = 0.01
    wrong = normfold.convert(tiny(), output=tmp_path / "wrong", **options)
    assert engine_of(wrong).verdict.state == "fail"
    assert wrong.artifacts == []


def test_the_graph_of_a_result_is_that_of_its_first_file(tmp_path: Path) -> None:
    """A14: on its target's grids, whether files are written or not."""
    for export in ("onnx", None):
        result = integers(tmp_path, export=export)
        targets = {str(node.target) for node in result.graph.nodes}
        assert "normfold.quantize.default" in targets
    for kinds in ("onnx", ("onnx", "pt2"), None):
        made = normfold.convert(tiny(), export=kinds, output=tmp_path, inputs=(images(),))
        assert made.graph.baked
        assert "normfold.quantize.default" not in {str(node.target) for node in made.graph.nodes}


def test_what_migrates_stands_in_the_report(tmp_path: Path) -> None:
    """A10: nothing runs that the report does not list, and all of it is judged."""
    result = integers(tmp_path, migrate=True, equalize=True)
    names = [item.name for item in result.report.passes]
    assert names == [
        *["canonicalize", "fold-affine", "equalize", "restore", "bake"],
        *["migrate-scale", "restore", "bake", "quantize-weights", "quantize-activations"],
        *["correct-bias", "bake"],
    ]
    assert result.report.pipeline == ",".join(item.spec for item in result.report.passes)
    bake = result.report.passes[7].check
    assert isinstance(bake, Check)
    assert bake.kind == "rounding"


@pytest.mark.parametrize(
    ("name", "stem"),
    [("net (v2).pt", "net__v2"), ("a b/r-1.0.pth", "r-1.0"), ("x:y.pt", "x_y")],
)
def test_files_are_named_like_the_model(name: str, stem: str, tmp_path: Path) -> None:
    """A13."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.nn.Linear(3, 2), path)
    out = tmp_path / "out"
    result = normfold.convert(path, inputs=("2x3",), output=out, verify="off")
    assert [item.name for item in result.artifacts] == [f"{stem}.onnx"]


def test_passes_beside_text_and_a_captured_graph(tmp_path: Path) -> None:
    from normfold.passes.bake import Bake
    from normfold.passes.canonicalize import Canonicalize
    from normfold.passes.fold_affine import FoldAffine

    graph = normfold.capture(tiny(), (images(),))
    passes = [Canonicalize(), FoldAffine(direction="backward"), Bake()]
    result = normfold.convert(graph, passes=passes, output=tmp_path)
    assert result.ok
    assert [item.name for item in result.artifacts] == ["tiny.onnx"]
    assert 'passes = "canonicalize,fold-affine{direction=backward},bake"' in result.report.job
    torch.testing.assert_close(result.graph(images()).shape, torch.Size([2, 5]))
    assert any("batch_norm" in str(node.target) for node in graph.nodes)  # it is left untouched


def test_openvino_runs_files_and_takes_its_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": (images(),), "output": tmp_path}
    file = normfold.convert(tiny(), target="openvino", **options)
    (made,) = file.report.artefacts
    assert made.path.endswith("tiny.onnx")
    assert made.verdict.why.startswith("equivalent in OpenVINO ")
    ir = normfold.convert(tiny(), export="openvino", **options)
    assert sorted(path.name for path in ir.artifacts) == ["tiny.bin", "tiny.xml"]
    assert ir.report.artefacts[0].verdict.why.startswith("equivalent in OpenVINO ")
    both = normfold.convert(tiny(), target=["ort-x86", "openvino"], **options)
    assert [path.name for path in both.artifacts] == ["tiny.onnx", "tiny.openvino.onnx"]


class Residual(nn.Module):
    """A sum in front of a LayerNorm, which onnxruntime fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.body(x)))  # type: ignore[no-any-return]


def over_two_axes(path: Path) -> None:
    model = onnx.load(path)
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert "axis" not in {item.name for item in norm.attribute}  # -1
    norm.attribute.append(onnx.helper.make_attribute("axis", -2))
    onnx.save(model, path)


def test_a_fault_that_the_runtime_optimises_away(
    tmp_path: Path, damaged: Callable[[Damage], None]
) -> None:
    """onnxruntime fuses a sum and a LayerNorm whatever the axis, and other runtimes do as the file says."""
    torch.manual_seed(0)
    damaged(over_two_axes)
    inputs = [torch.randn(2, 5, 16)]
    result = normfold.convert(Residual().eval(), inputs=inputs, output=tmp_path / "out")
    assert refused(result, tmp_path / "out").startswith("onnxruntime-none")
    kinds = {check.kind: check.ok for check in result.report.checks}
    assert (kinds["onnxruntime-all"], kinds["onnxruntime-none"]) == (True, False)
