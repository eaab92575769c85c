"""The report object: JSON against its schema, why(), counts, and the terminal text."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

import normfold
from normfold.report import (
    Check,
    EngineReport,
    Island,
    OutputCheck,
    PassReport,
    Range,
    Report,
    SiteStatus,
    Timing,
    Warned,
    json_text,
)
from normfold.report.around import Around
from normfold.report.quantization import (
    Confidence,
    Evidence,
    MixedReport,
    Placement,
    QuantizationReport,
)
from normfold.report.recalibration import NormShift, RecalibrationReport
from normfold.report.text import print_report
from normfold.report.training import TrainingReport
from normfold.report.verdict import AgreementCheck, Artefact, Budget, Verdict
from tests.report.runs import mixed

SCHEMA: dict[str, Any] = json.loads(
    (Path(normfold.__file__).parent / "report" / "schema.json").read_text()
)
Validator = jsonschema.Draft202012Validator


@pytest.fixture(scope="module")
def report() -> Report:
    return mixed()


def made(path: str, state: Any = "pass", why: str = "equivalent in onnxruntime 1.31") -> Artefact:
    """A file of a run."""
    verdict = Verdict(state, "onnxruntime 1.31", why)
    return Artefact(path, "onnx", "ort-x86", 1_500_000, "0123456789abcdef", verdict)


def errors(report: Report) -> list[str]:
    data = json.loads(report.to_json())
    return [f"{error.json_path}: {error.message}" for error in Validator(SCHEMA).iter_errors(data)]


def rendered(report: Report, width: int = 80, verbose: bool = False) -> str:
    """The text on a terminal without colour."""
    buffer = io.StringIO()
    print_report(report, Console(file=buffer, width=width, color_system=None), verbose)
    return buffer.getvalue()


def test_the_schema_is_a_schema_and_describes_every_field() -> None:
    Validator.check_schema(SCHEMA)

    def missing(schema: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, field in schema.get("properties", {}).items():
            if "$ref" not in field and len(field.get("description", "").split()) < 3:
                found.append(f"{path}.{name}")
            for inner in (field, field.get("items", {})):
                found += missing(inner, f"{path}.{name}")
        return found

    parts = {"report": SCHEMA, **SCHEMA["$defs"]}
    assert [gap for name, part in parts.items() for gap in missing(part, name)] == []
    assert SCHEMA["properties"]["schema"]["const"] == 2


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("", Report),
        ("pass", PassReport),
        ("check", Check),
        ("site", SiteStatus),
        ("timing", Timing),
        ("range", Range),
        ("recalibration", RecalibrationReport),
        ("norm_shift", NormShift),
        ("training", TrainingReport),
        ("island", Island),
        ("engine", EngineReport),
        ("quantization", QuantizationReport),
        ("evidence", Evidence),
        ("confidence", Confidence),
        ("mixed", MixedReport),
        ("placement", Placement),
        ("agreement", AgreementCheck),
        ("budget", Budget),
        ("artefact", Artefact),
        ("around", Around),
        ("verdict", Verdict),
    ],
)
def test_the_schema_knows_exactly_the_fields_of_the_objects(part: str, kind: Any) -> None:
    schema = SCHEMA["$defs"][part] if part else SCHEMA
    derived = {
        "": {"schema", "ok", "counts", "exit_code", "outcome", "pipeline"},
        "agreement": {"ok", "failures"},
        "check": {"ok", "failures", "needed_tolerance"},
        "timing": {"faster", "verdict"},
        "training": {"ok"},
        "quantization": {"foretold", "ok"},
    }.get(part, set())
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(schema["properties"]) == fields | derived
    assert set(schema["required"]) == fields | derived


@pytest.mark.parametrize("verify", ["each", "final", "off"])
def test_a_report_follows_the_schema(verify: str) -> None:
    assert errors(mixed(verify=verify)) == []


def test_a_report_made_by_hand_follows_the_schema() -> None:
    assert errors(Report()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.update(schema=1),
        lambda data: data.pop("ok"),
        lambda data: data.update(extra=1),
        lambda data: data["sites"][0].update(state="lost"),
        lambda data: data["sites"][0].update(code="NF1"),
        lambda data: data["passes"][0].update(rewrites=-1),
        lambda data: data["passes"][0]["check"].pop("needed_tolerance"),
        lambda data: data["checks"][0]["outputs"][0].update(error="small"),
        lambda data: data["counts"].update(conv={"gone": 1}),
    ],
)
def test_the_schema_refuses_what_is_wrong(report: Report, spoil: Any) -> None:
    data = copy.deepcopy(json.loads(report.to_json()))
    assert Validator(SCHEMA).is_valid(data)
    spoil(data)
    assert not Validator(SCHEMA).is_valid(data)


def test_the_json_says_what_the_object_says(report: Report) -> None:
    data = json.loads(report.to_json())
    assert data["ok"] is True
    assert data["pipeline"] == "canonicalize,fold-affine,restore,bake"
    assert [item["spec"] for item in data["passes"]] == data["pipeline"].split(",")
    assert [item["check"]["kind"] for item in data["passes"]] == ["algebra"] * 3 + ["rounding"]
    assert data["checks"][0]["kind"] == "capture"
    for item, raw in zip(report.passes, data["passes"], strict=True):
        assert item.check is not None
        assert raw["check"]["needed_tolerance"] == item.check.needed_tolerance
    assert 0 < data["parameters_after"] < data["parameters_before"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_null(number: float) -> None:
    output = OutputCheck("y", "random", number, number, number, number)
    report = Report(checks=[Check("rounding", (output,))])
    data = json.loads(report.to_json(), parse_constant=lambda text: pytest.fail(text))
    check = data["checks"][0]
    assert check["outputs"][0] == {
        "output": "y",
        "inputs": "random",
        **dict.fromkeys(("baseline", "error", "tolerance", "max_abs")),
    }
    assert check["needed_tolerance"] is None
    assert json.loads(json_text({"a": [number, (1.5, number)]})) == {"a": [None, [1.5, None]]}
    assert errors(report) == []


def test_why_tells_what_was_applied(report: Report) -> None:
    assert report.why("gone") == "gone: fold-affine: backward"
    assert report.why("layer") == "layer: fold-affine: forward"


@pytest.mark.parametrize(
    ("site", "code"), [("stuck", "NF105"), ("kept", "NF104"), ("free", "NF101")]
)
def test_why_tells_the_reason_of_a_site_that_is_left(report: Report, site: str, code: str) -> None:
    """Although restore, behind it, was applied to it."""
    text = report.why(site)
    assert text.startswith(f"{site}: {code} ")
    assert "; hint: " in text
    status = next(status for status in report.sites if status.site == site)
    assert status.code == code


def test_why_of_a_site_that_one_pass_declines_and_the_next_folds() -> None:
    report = mixed("canonicalize,fold-affine{direction=forward},fold-affine{direction=backward}")
    first = next(item for item in report.passes[1].declined if item.site == "gone")
    assert first.code
    assert report.why("gone") == "gone: fold-affine{direction=backward}: backward"


def test_why_of_a_site_that_is_not_there_lists_those_that_are(report: Report) -> None:
    with pytest.raises(KeyError, match=r"no site `norm9`.*gone.*stuck"):
        report.why("norm9")


def test_counts(report: Report) -> None:
    assert report.counts() == {"batch-norm": {"gone": 1, "left": 2}, "layer-norm": {"kept": 2}}
    assert Report().counts() == {}


def test_the_text_fits_80_columns_and_says_it_all(report: Report) -> None:
    report = dataclasses.replace(report, artefacts=(made("out/net.onnx"),))
    text = rendered(report)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "wrote out/net.onnx: equivalent in onnxruntime 1.31"
    assert "file      net.onnx: ort-x86, 0.00 MB -> 1.50 MB, sha256 0123456789ab" in lines
    (stuck,) = [line for line in lines if line.startswith("stuck ")]
    assert stuck.split()[:4] == ["stuck", "batch-norm", "left", "NF105"]
    (free,) = [line for line in lines if line.startswith("free ")]
    assert free.split()[:4] == ["free", "batch-norm", "left", "NF101"]
    (counted,) = [line for line in lines if line.startswith("batch-norm ")]
    assert counted.split() == ["batch-norm", "1", "0", "2", "0"]
    assert not [line for line in lines if line.startswith("gone ")]
    assert [
        line for line in rendered(report, verbose=True).splitlines() if line.startswith("gone ")
    ]


def test_a_failed_verdict_is_said(report: Report) -> None:
    output = OutputCheck("logits", "x100", 1e-7, 0.25, 2e-6, 3.0)
    check = Check("rounding", (output,), note="look here")
    failed = dataclasses.replace(report, checks=(*report.checks, check))
    assert (failed.ok, failed.exit_code) == (False, 1)
    text = rendered(failed, width=120)
    assert text.splitlines()[-1] == (
        "FAILED: rounding: error 2.50e-01 at logits / x100, 2.00e-06 allowed"
    )
    (line,) = [line for line in text.splitlines() if " FAILED" in line]
    expected = "rounding FAILED 2.50e-01 2.00e-06 1.00e-07 logits / x100 look here"
    assert " ".join(line.split()) == expected


def test_a_run_without_checks_claims_nothing() -> None:
    assert "nothing written: not judged" in rendered(mixed(verify="off"))


def integers(
    agreement: float, *decibels: float, max_drop: float | None = None, promised: float = 20.0
) -> AgreementCheck:
    budget = Budget(max_drop=max_drop)
    lost = 100 * (1 - agreement)
    return AgreementCheck(
        "onnxruntime-all",
        "n.onnx",
        64,
        agreement,
        lost,
        decibels,
        (promised,) * len(decibels),
        budget,
    )


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (integers(0.97, 18.0), ""),
        (integers(0.93, 18.0), ""),  # 97 % less two standard errors of 64 samples: 92.7 %
        (integers(0.92, 18.0), "agreement 92.0%, at least 92.7% asked for"),
        (integers(1.0, 9.0), "9.0 dB, at least 10 dB asked for"),
        (integers(1.0, 18.0, 16.0), "16.0 dB, the simulation has 20.0 dB"),
        (integers(1.0, 31.0, promised=50.0), ""),  # clear: the runtime rounds in other places
        (integers(1.0, math.nan), "an output is not finite"),
        (integers(0.5, 1.0, max_drop=60.0), ""),
        (integers(0.5, 30.0, max_drop=10.0), "50 points lost, 10 allowed"),
    ],
)
def test_the_budget_of_integers(check: AgreementCheck, why: str) -> None:
    assert check.failures() == ([why] if why else [])
    report = Report(checks=(check,), artefacts=(made("out/n.onnx"),))
    assert errors(report) == []
    text = rendered(report, width=160).splitlines()
    assert report.exit_code == (1 if why else 0)
    last = f"NOT written: onnxruntime-all: {why}" if why else "wrote out/n.onnx: equivalent"
    assert text[-1].startswith(last)


@pytest.mark.parametrize(
    ("report", "code", "last"),
    [
        (Report(unmet=("fold-affine>=30, found 3",)), 1, "FAILED: fold-affine>=30, found 3"),
        (Report("a job", unmet=("a>=1, found 0",)), 1, "NOT written: a>=1, found 0"),
        (
            Report(unmet=("fold-affine>=30, found 3",), artefacts=(made("o/n.onnx"),)),
            1,
            "NOT written: fold-affine>=30, found 3",
        ),
        (
            Report(artefacts=(made("o/n.engine", "not judged", "not judged here (no GPU)"),)),
            0,
            "wrote o/n.engine: not judged here (no GPU)",
        ),
        (
            Report(artefacts=(made("o/n.onnx"),), missing=("no engine: no TensorRT",)),
            3,
            "wrote o/n.onnx: equivalent in onnxruntime 1.31; no engine: no TensorRT",
        ),
        (
            Report(artefacts=(made("o/n.onnx"),), missing=("no engine",), unmet=("a>=1",)),
            1,
            "NOT written: a>=1",
        ),
    ],
)
def test_the_last_line_agrees_with_the_exit_code(report: Report, code: int, last: str) -> None:
    assert report.exit_code == code
    assert rendered(report, width=160).splitlines()[-1] == last


def test_more_than_twenty_left_sites_are_counted() -> None:
    sites = [SiteStatus(f"norm{i}", "batch-norm", "left", "NF105", "stuck") for i in range(23)]
    text = rendered(Report(sites=sites))
    assert "norm19" in text
    assert "norm20" not in text
    assert "... and 3 more: see the report, or --verbose" in text
    assert "norm22" in rendered(Report(sites=sites), verbose=True)


def test_brackets_and_colons_are_printed_as_they_are() -> None:
    """In rich's markup they would be styles, or an error."""
    odd = "runs[bold]/[/x]:smile:/m.pt"
    report = Report(
        model=odd,
        inputs=odd,
        notes=[odd],
        artefacts=[made(odd)],
        sites=[SiteStatus("a[red]", "batch-norm", "left", "NF105", "[/] at [dim]")],
        passes=[PassReport("p", "exact", warnings=[Warned("a[red]", "NF201", odd)])],
        checks=[Check("rounding", (OutputCheck("[y]", "rows", 0.0, 0.0, 0.0, 0.0),), note="[b]")],
    )
    text = rendered(report, width=140)
    for label in ("model     ", "inputs    ", "note      ", "warning   NF201 a[red]: "):
        assert f"{label}{odd}\n" in text
    assert f"wrote {odd}: equivalent" in text
    for part in ("a[red] ", "[/] at [dim]", "[y] / rows", "[b]"):
        assert part in text
