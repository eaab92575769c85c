"""What a run says of its engine where there is a GPU; the engine is a fake, since CI has none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.ir import capture
from normfold.judge import Verifier
from normfold.judge.files import Judge
from normfold.report import EngineReport, Report
from normfold.report.events import Recorder
from normfold.report.text import print_report
from normfold.report.verdict import Verdict
from normfold.target import TARGETS
from normfold.targets.order import Draft, Order
from normfold.targets.tensorrt import Gpu, write
from normfold.targets.tensorrt.builder import Binding
from normfold.targets.tensorrt.sidecar import Sidecar
from normfold.targets.tensorrt.write import engine_runs
from tests.cli.nets import tiny
from tests.targets.tensorrt.conftest import NO_GPU, Machine
from tests.targets.tensorrt.fakes import ADA

ASKED = [
    Binding("x", "input", "float32", (-1, 3, 8, 8)),
    Binding("y", "output", "float32", (-1, 5)),
]
SIDECAR = Sidecar(builder="tensorrt", version="11.1.0.1", targets=("sm89",))


class Engine:
    """Runs the network in torch."""

    bindings: Sequence[Binding] = tuple(ASKED)
    factor = 1.0
    fails: Exception | None = None

    def __init__(self, path: Path) -> None:
        self.net = tiny()

    def layers(self) -> dict[str, int]:
        return {"float16": 7}

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.fails is not None:
            raise self.fails
        y: Tensor = self.net(*inputs)
        return [y.detach() * self.factor]


@pytest.fixture
def opened(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    machine(ADA)
    kind = type("Fake", (Engine,), {})
    monkeypatch.setattr(write, "Engine", kind)
    return kind


def run(verify: bool = True) -> tuple[Report, Verdict]:
    """Judge the engine as `deliver` does."""
    path, record = Path("tiny.engine"), Recorder()
    graph = capture(tiny(), (torch.randn(2, 3, 8, 8),))
    engine = EngineReport(path.name, "tensorrt", "11.1.0.1", ("sm89",), {}, {"float32": 3})
    record.emit(engine)
    order = Order(graph, Path("tiny"), TARGETS["trt"], emit=record.emit)
    draft = Draft(path, "TensorRT", lambda: engine_runs(path, SIDECAR, ASKED, engine, order))
    verdict = Judge(Verifier(graph) if verify else None).judge(draft, record.emit)
    return record.report(), verdict


def said(report: Report) -> Any:
    """The engine as JSON has it, and its line on the terminal."""
    text = io.StringIO()
    print_report(report, Console(file=text, width=200))
    (line,) = [line for line in text.getvalue().splitlines() if line.startswith("engine ")]
    return report.engine, line


def test_it_runs_and_is_judged(opened: type[Engine]) -> None:
    report, verdict = run()
    assert [(check.kind, check.ok) for check in report.checks] == [("tensorrt", True)]
    assert verdict.state == "pass"
    assert verdict.why.startswith("equivalent in TensorRT")
    engine, line = said(report)
    assert (engine.opened, engine.ran, engine.layers) == (True, True, {"float16": 7})
    assert "built and run;" in line


def test_a_wrong_engine_is_refused(opened: type[Engine]) -> None:
    opened.factor = 1.01
    report, verdict = run()
    assert not report.ok
    assert verdict.state == "fail"
    assert [check.kind for check in report.checks if not check.ok] == ["tensorrt"]


def test_another_type_than_was_asked_for(opened: type[Engine]) -> None:
    opened.bindings = [ASKED[0], Binding("y", "output", "float16", (-1, 5))]
    with pytest.raises(ExportError, match="`y` has dtype float16, not float32"):
        run()


@pytest.mark.parametrize(
    "error",
    [
        EnvironmentMissing("torch sees no GPU"),
        UsageError("the engine was not built for this shape", found="`x`: 4x3x8x8"),
    ],
)
def test_what_cannot_be_run_is_kept_and_said(error: Exception, opened: type[Engine]) -> None:
    opened.fails = error
    report, verdict = run()
    engine, line = said(report)
    assert (engine.opened, engine.ran, list(report.checks)) == (True, False, [])
    assert "built, opened, not run;" in line
    assert verdict.state == "not judged"
    assert verdict.why.startswith("not judged here (")
    assert str(error).splitlines()[0] in verdict.why


def test_without_a_verdict_it_is_not_opened(opened: type[Engine]) -> None:
    report, verdict = run(verify=False)
    assert not said(report)[0].opened
    assert verdict.why == "not judged: --verify off"


@pytest.mark.parametrize(
    ("found", "why"), [(NO_GPU, NO_GPU), (Gpu("H200", "sm90"), "it is not for H200, sm90")]
)
def test_where_it_cannot_run(
    found: Gpu | str, why: str, opened: type[Engine], machine: Machine
) -> None:
    machine(found)
    opened.fails = AssertionError("it was run")
    report, verdict = run()
    engine, line = said(report)
    assert (engine.opened, engine.ran) == (False, False)
    assert "built, not run;" in line
    assert verdict.why == f"not judged here ({why})"
