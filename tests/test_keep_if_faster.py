"""`convert(keep_if_faster=True)`: what is written, and what the report says, whichever way the timing ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

import normfold
import normfold.judge.bench as bench_module
from normfold.errors import UsageError
from normfold.judge import Verifier
from normfold.judge.pairs import Pair
from normfold.report import Check, OutputCheck, Timing
from normfold.report.timing import duration
from normfold.targets import RuntimeSession, census
from tests.cli.conftest import ROOT
from tests.cli.nets import tiny
from tests.timings import timing

SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how the timing ends; the pair runs once, so that both files must be there and work."""

    def set_to(*figures: float) -> None:
        def fake(pair: Pair, *_: Any, **__: Any) -> Timing:
            pair.a()
            pair.b()
            return replace(timing(*figures), inputs=pair.inputs)

        monkeypatch.setattr(bench_module, "measure", fake)

    return set_to


def converted(out: Path, **options: Any) -> normfold.Result:
    """The tiny network, whose norms all fold, through the gate."""
    given: dict[str, Any] = {"inputs": (images(),), "output": out, **options}
    return normfold.convert(tiny(), keep_if_faster=True, **given)


def report_of(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((out / "tiny.report.json").read_text())
    jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)
    return data


def test_a_faster_result_is_kept(tmp_path: Path, judge: Callable[..., None]) -> None:
    judge(0.8, 0.75, 0.85)
    result = converted(tmp_path)
    assert result.ok
    assert census(tmp_path / "tiny.onnx").batch_norms == 0
    data = report_of(tmp_path)
    assert data["timing"]["faster"] is True
    assert data["timing"]["verdict"] == "B is 20.0 % faster (95 % interval 15.0 to 25.0 %)"
    assert data["timing"]["a"] == "the original, exported as it is"
    assert data["timing"]["b"] == "`canonicalize,fold-affine,restore,bake`"
    assert data["timing"]["inputs"] == "x:2x3x8x8:f32"
    assert data["counts"] == {"batch-norm": {"gone": 2}}
    assert not [note for note in data["notes"] if "faster" in note]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx", "tiny.report.json"]


@pytest.mark.parametrize(
    ("verify", "figures"), [("final", (0.9, 0.8, 1.0)), ("off", (1.3, 1.2, 1.4))]
)
def test_a_result_that_is_not_faster_gives_way(
    verify: Any,
    figures: tuple[float, float, float],
    tmp_path: Path,
    judge: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is written, the report and the result are all of the original's own export."""
    judge(*figures)
    beside = verify == "off"  # and the weights beside the file go with it
    if beside:
        monkeypatch.setattr("normfold.targets.write.SINGLE_FILE_LIMIT", 0)
    result = converted(tmp_path, verify=verify, export=("pt2", "onnx"))
    assert result.ok
    assert census(tmp_path / "tiny.onnx").batch_norms == 2
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(RuntimeSession(tmp_path / "tiny.onnx").run([x])[0], tiny()(x))
    data = report_of(tmp_path)
    assert data["timing"]["faster"] is False
    note = data["notes"][0]
    assert note.startswith("not faster, so the original's own export was written: ")
    assert f"takes {duration(0.002 * figures[0])}, the original 2 ms" in note
    assert "`canonicalize,fold-affine,restore,bake`" in note
    assert data["pipeline"] == "canonicalize,restore,bake"
    assert data["census"]["BatchNormalization"] == 2
    assert "gone" not in data["counts"]["batch-norm"]
    kinds = [check["kind"] for check in data["checks"]]
    judged = ["capture", "rounding", "onnxruntime-all", "onnxruntime-none", "pt2"]
    assert kinds == (judged if verify == "final" else [])
    names = ["tiny.onnx", *["tiny.onnx.data"] * beside, "tiny.pt2", "tiny.report.json"]
    names.append("tiny.statistics.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for module in (result.graph, torch.export.load(tmp_path / "tiny.pt2").module()):
        assert module(images()).shape == (2, 5)
    assert any("batch_norm" in str(node.target) for node in result.graph.nodes)


def test_what_fails_its_verdict_is_not_timed(
    tmp_path: Path, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(0.8, 0.7, 0.9)
    wrong = OutputCheck("output", "every input", 0.0, 1.0, 1e-6, 1.0)
    monkeypatch.setattr(Verifier, "rounding", lambda *_, **__: Check("rounding", (wrong,)))
    result = converted(tmp_path)
    assert not result.ok
    assert result.report.timing is None
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.report.json"]
    assert report_of(tmp_path)["timing"] is None


@pytest.mark.parametrize(
    "options", [{"export": "pt2"}, {"export": None}, {"target": "trt"}, {"target": "trt-rtx"}]
)
def test_what_onnxruntime_cannot_time_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--keep-if-faster`: it times ONNX files in onnxruntime"):
        normfold.convert("no.pt", keep_if_faster=True, output=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
