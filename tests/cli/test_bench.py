"""bench and `convert --keep-if-faster` on the command line: text, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import normfold.judge.bench as bench_module
from tests.cli.conftest import ROOT, TINY, Cli, contents
from tests.cli.nets import tiny
from tests.judge.test_pairs import written

SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())
QUICK = ("--rounds", "6", "--seconds", "0")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of each run by the order of the calls, so that no verdict depends on the machine."""
    seconds = {"a": 0.1, "b": 0.1}
    sides: list[Callable[[], object]] = []

    def timed(call: Callable[[], object], calls: int, *_: Any) -> float:
        call()
        if call not in sides:
            if len(sides) == 2:  # another command
                sides.clear()
            sides.append(call)  # the warm-up begins with A
        return calls * seconds["ab"[sides.index(call)]]

    monkeypatch.setattr(bench_module, "_time", timed)
    return seconds


@pytest.fixture
def files(cli: Cli) -> tuple[str, str]:
    """Two files that take the same; `cli` made the folder that they are in."""
    written(Path(), "a.onnx", "batch", 3)
    written(Path(), "b.onnx", "batch", 3)
    return "a.onnx", "b.onnx"


def test_identical_files_show_no_difference(
    cli: Cli, files: tuple[str, str], clock: dict[str, float]
) -> None:
    ran = cli("bench", files[0], files[0], *QUICK)
    assert ran.status == 0, ran.err
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines[-1].startswith("no difference that this machine can show (B/A 1.000, ")
    assert [line.split()[:4] for line in lines if line[:1] in "AB" and line[1] == " "] == [
        [letter, "100", "ms", files[0]] for letter in "AB"
    ]
    assert "onnxruntime CPUExecutionProvider, inputs x:1x3:f32" in lines
    assert any(line.startswith("6 rounds of 4 x 1 runs in ") for line in lines)


@pytest.mark.parametrize(
    ("b", "verdict"),
    [
        (0.05, "B is 50.0 % faster (95 % interval 50.0 to 50.0 %)"),
        (0.15, "B is 50.0 % slower (95 % interval 50.0 to 50.0 %)"),
    ],
)
def test_the_verdict_is_of_b(
    b: float, verdict: str, cli: Cli, files: tuple[str, str], clock: dict[str, float]
) -> None:
    clock["b"] = b
    ran = cli("bench", *files, *QUICK)
    assert ran.out.splitlines()[-1] == verdict
    assert ran.status == 0  # whichever is faster: it is no verdict on anything that was made


def test_json_with_a_real_clock(cli: Cli, files: tuple[str, str]) -> None:
    ran = cli("bench", *files, *QUICK, "--batch", "3", "--threads", "1", "--json")
    assert ran.status == 0, ran.err
    schema = {**SCHEMA["$defs"]["timing"], "$defs": SCHEMA["$defs"]}
    jsonschema.validate(ran.json, schema, jsonschema.Draft202012Validator)
    assert (ran.json["a"], ran.json["b"]) == files
    assert (ran.json["rounds"], ran.json["threads"]) == (6, 1)
    assert ran.json["inputs"] == "x:3x3:f32"
    assert ran.json["interval"][0] <= ran.json["ratio"] <= ran.json["interval"][1]
    assert 0 < ran.json["a_seconds"] < ran.json["seconds"]


def test_models_in_both_runtimes(cli: Cli, clock: dict[str, float]) -> None:
    written(Path(), "b.onnx", "batch", 3, 8, 8)
    ran = cli("bench", TINY, "b.onnx", *QUICK, "--input", "x:4x3x8x8")
    assert ran.status == 0, ran.err
    assert f"note      {TINY} was exported as it is (preset `baked`) to be timed" in ran.out
    assert "inputs x:4x3x8x8:f32" in ran.out
    program = torch.export.export(tiny(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, "net.pt2")
    options = ("--runtime", "torch", "--device", "cpu", "--threads", "1", "--batch", "2")
    ran = cli("bench", "net.pt2", TINY, *options, *QUICK)
    assert ran.status == 0, ran.err
    assert "torch eager cpu, threads: 1, inputs x:2x3x8x8:f32" in ran.out


REFUSED = {
    "few rounds": (["no.pt", "no.pt", "--rounds", "5"], 2, ["--rounds", "at least 6"]),
    "no batch": (["no.pt", "no.pt", "--batch", "0"], 2, ["--batch"]),
    "time": (["no.pt", "no.pt", "--seconds", "-1"], 2, ["--seconds"]),
    "runtime": (["no.pt", "no.pt", "--runtime", "tvm"], 2, ["tvm", "ort"]),
    "one side": (["no.pt"], 2, ["B", "--help"]),
    "device of ort": (["no.pt", "no.pt", "--device", "cpu"], 2, ["--runtime torch"]),
    "provider": (["no.pt", "no.pt", "--provider", "cpuu"], 2, ["mean `cpu`?"]),
    "missing provider": (["no.pt", "no.pt", "--provider", "dml"], 3, ["DmlExecutionProvider"]),
    "missing file": (["no.onnx", TINY], 4, ["no.onnx", "no such file"]),
    "missing model": (["no.pt", TINY], 4, ["no.pt"]),
    "another job": (
        [TINY, "tests.cli.nets:tiny(seed=1)", "--input", "x:2x9x8x8"],
        2,
        ["--input x:2x9x8x8"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, cli: Cli, tmp_path: Path) -> None:
    arguments, status, parts = REFUSED[case]
    ran = cli("bench", *arguments)
    assert ran.status == status, ran
    ran.one_error(*parts)
    assert list(tmp_path.iterdir()) == []


def test_help_brings_in_no_torch() -> None:
    code = "import sys; from normfold.cli import app\ntry:\n app(['bench', '--help'])\n"
    code += "except SystemExit:\n print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.endswith("False False\n"), ran
    assert "Time two networks in turn" in ran.stdout


@pytest.mark.slow
def test_keep_if_faster(cli: Cli, clock: dict[str, float]) -> None:
    """As fast as the original is not faster."""
    ran = cli("convert", TINY, "--keep-if-faster", "-o", "out", "--verify", "off")
    assert ran.status == 0, ran.err
    assert sorted(contents(Path("out"))) == ["tiny.onnx", "tiny.report.json"]
    data = json.loads(Path("out/tiny.report.json").read_text())
    assert data["census"]["BatchNormalization"] == 2
    assert data["timing"]["ratio"] == 1
    assert data["timing"]["verdict"] in ran.out.splitlines()
    assert "note      not faster, so the original's own export was written: " in ran.out


def test_keep_if_faster_needs_onnx(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", "no.pt", "--keep-if-faster", "--export", "pt2", "-o", "out")
    assert ran.status == 2
    ran.one_error("`--keep-if-faster`: it times ONNX files", "ort-x86")
    assert list(tmp_path.iterdir()) == []
