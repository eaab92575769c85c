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
    Precision,
    Report,
    SiteStatus,
    Timing,
    Warned,
    json_text,
)
from normfold.report.quantization import (
    Confidence,
    Evidence,
    MixedReport,
    QuantizationReport,
)
from normfold.report.text import print_report
from normfold.report.training import TrainingReport
from tests.report.runs import mixed

SCHEMA: dict[str, Any] = json.loads(
    (Path(normfold.__file__).parent / "report" / "schema.json").read_text()
)
Validator = jsonschema.Draft202012Validator


@pytest.fixture(scope="module")
def report() -> Report:
    return mixed()


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
    assert SCHEMA["properties"]["schema"]["const"] == 1


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("", Report),
        ("pass", PassReport),
        ("check", Check),
        ("site", SiteStatus),
        ("timing", Timing),
        ("precision", Precision),
        ("training", TrainingReport),
        ("island", Island),
        ("engine", EngineReport),
        ("quantization", QuantizationReport),
        ("evidence", Evidence),
        ("confidence", Confidence),
        ("mixed", MixedReport),
    ],
)
def test_the_schema_knows_exactly_the_fields_of_the_objects(part: str, kind: Any) -> None:
    schema = SCHEMA["$defs"][part] if part else SCHEMA
    derived = {
        "": {"schema", "ok", "counts"},
        "check": {"ok", "needed_tolerance"},
        "timing": {"faster", "verdict"},
        "training": {"ok"},
        "quantization": {"ok"},
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
        lambda data: data.update(schema=2),
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
    report = copy.deepcopy(report)
    report.artifacts = ["out/net.onnx"]
    text = rendered(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    assert lines[-1] == "verdict: equivalent"
    assert lines[-2] == "wrote out/net.onnx"
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
    failed = copy.deepcopy(report)
    output = OutputCheck("logits", "x100", 1e-7, 0.25, 2e-6, 3.0)
    failed.checks.append(Check("rounding", (output,), note="look here"))
    assert not failed.ok
    text = rendered(failed, width=120)
    assert "verdict: NOT equivalent" in text
    (line,) = [line for line in text.splitlines() if "FAILED" in line]
    expected = "rounding FAILED 2.50e-01 2.00e-06 1.00e-07 logits / x100 look here"
    assert " ".join(line.split()) == expected


def test_a_run_without_checks_claims_nothing() -> None:
    assert "verdict: not verified (verify=off)" in rendered(mixed(verify="off"))


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
        artifacts=[odd],
        sites=[SiteStatus("a[red]", "batch-norm", "left", "NF105", "[/] at [dim]")],
        passes=[PassReport("p", "exact", warnings=[Warned("a[red]", "NF201", odd)])],
        checks=[Check("rounding", (OutputCheck("[y]", "rows", 0.0, 0.0, 0.0, 0.0),), note="[b]")],
    )
    text = rendered(report, width=140)
    for label in ("model     ", "inputs    ", "note      ", "wrote ", "warning   NF201 a[red]: "):
        assert f"{label}{odd}\n" in text
    for part in ("a[red] ", "[/] at [dim]", "[y] / rows", "[b]"):
        assert part in text
