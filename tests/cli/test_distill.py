"""`normfold distill` and `convert --to prepbn`: what is written, what is refused, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import ROOT
from tests.train.nets import samples

SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())
MODEL = ["tests.train.nets:classifier", "--input", "2x5x6"]
QUICK = ["--steps", "40", "--rate", "3e-3"]


@pytest.fixture
def npz(tmp_path: Path) -> str:
    x, labels = samples()
    path = tmp_path / "samples.npz"
    np.savez(path, inputs=x.numpy(), labels=labels.numpy())
    return str(path)


def report_of(folder: Path) -> Any:
    return json.loads((folder / "classifier.report.json").read_text())


@pytest.mark.parametrize("command", ["convert", "distill"])
def test_layer_norms_are_gone(command: str, npz: str, cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = cli(command, *MODEL, "--to", "prepbn", "--data", npz, *QUICK, "-o", str(out))
    assert ran.status == 0, ran.err
    report = report_of(out)
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)
    training = report["training"]
    assert training["ok"]
    assert training["distance"] < training["start"]
    assert training["samples"] == 180
    assert training["drift"]["accuracy_teacher"] == pytest.approx(0.9, abs=0.1)
    assert report["pipeline"].startswith("canonicalize,replace-layernorm{to=prepbn},")
    assert {site["state"] for site in report["sites"] if site["kind"] == "layer-norm"} == {"gone"}
    ops = report["census"]
    assert not {"LayerNormalization", "RMSNormalization", "BatchNormalization", "Mul"} & ops.keys()
    assert "top-1 agreement" in ran.out
    assert "equivalent to the trained student" in ran.out


def test_a_limit_that_is_not_met(npz: str, cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--to", "affine", "--data", npz, "--steps", "1", "--rate", "3", "--max-drop", "0"]
    ran = cli("distill", *MODEL, *options, "-o", str(out))
    assert ran.status == 1
    assert [path.name for path in out.iterdir()] == ["classifier.report.json"]
    assert not report_of(out)["ok"]


def test_values_are_judged_by_a_metric_or_not_at_all(npz: str, cli: Any, tmp_path: Path) -> None:
    options = ["--data", npz, "--values", "--max-drop", "1", "-o", str(tmp_path / "out")]
    ran = cli("distill", *MODEL, *options)
    assert ran.status == 2
    ran.one_error("nothing to judge", "--metric")


def test_a_budget_leaves_what_costs_too_much(npz: str, cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--budget", "25", "--max-drop", "25", "--data", npz, *QUICK]
    ran = cli("distill", *MODEL, *options, "-o", str(out), "-v")
    assert ran.status == 0, ran.err
    training = report_of(out)["training"]
    replaced = sum(site["state"] == "gone" for site in report_of(out)["sites"])
    dial = training["ranking"]["dial"]
    lost = [dial[0]["accuracy"] - p["accuracy"] + 1.645 * p["error"] for p in dial]
    assert lost[replaced] <= 25
    assert replaced > 0
    assert replaced == len(dial) - 1 or lost[replaced + 1] > 25
    assert "dial, untrained" in ran.out


def test_the_users_metric_is_reported_and_judged(npz: str, cli: Any, tmp_path: Path) -> None:
    options = ["--data", npz, *QUICK, "--metric", "tests.train.nets:balance", "--max-drop", "100"]
    ran = cli("convert", *MODEL, "--to", "affine", *options, "-v", "-o", str(tmp_path / "out"))
    assert ran.status == 0, ran.err
    training = report_of(tmp_path / "out")["training"]
    drift, dial = training["drift"], training["ranking"]["dial"]
    assert 0 < drift["metric_student"] <= 100
    assert drift["metric_teacher"] == pytest.approx(dial[0]["metric"])  # the same held-out samples
    assert drift["metric_teacher"] != pytest.approx(100 * drift["accuracy_teacher"])
    assert "of the metric on the held-out samples: within 100" in ran.out


def test_a_folder_of_images(cli: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(40):
            pixels = random.integers(low, low + 128, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index:02}.png")
    out = tmp_path / "out"
    model = ["tests.train.nets:patches", "--input", "images:2x3x8x8"]
    data = ["--data", str(tmp_path / "images"), "--steps", "20"]
    ran = cli("convert", *model, "--to", "un", *data, "-o", str(out))
    assert ran.status == 0, ran.err
    report = json.loads((out / "patches.report.json").read_text())
    assert report["training"]["samples"] == 72
    assert {site["state"] for site in report["sites"] if site["kind"] == "layer-norm"} == {"gone"}
    notes = " ".join(report["notes"])
    assert "2 class folders in sorted order: `dark` 0, `light` 1" in notes
    assert "cropped at the centre to 8x8" in notes
    assert "mean (0.5, 0.4, 0.3)" in notes


def test_what_is_trained_has_no_plan(cli: Any) -> None:
    ran = cli("plan", *MODEL, "--to", "prepbn")
    assert ran.status == 2
    ran.one_error("is trained", "--data")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "prepbn"], "there are no samples"),
        (["--to", "rmsnorm", "--data", "x.npz"], "there is nothing to train"),
        (["--to", "prepbn", "--data", "no.npz"], "no.npz"),
    ],
)
def test_refusals(options: list[str], words: str, cli: Any, tmp_path: Path) -> None:
    ran = cli("convert", *MODEL, *options, "-o", str(tmp_path / "out"))
    assert ran.status in (2, 4)
    assert words in ran.err
    assert not (tmp_path / "out").exists()
