"""The script and the trtexec line for machines that normfold is not on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from normfold.job import EngineOptions
from normfold.targets.tensorrt import Backend
from normfold.targets.tensorrt.builder import Binding
from normfold.targets.tensorrt.profiles import Shapes
from normfold.targets.tensorrt.script import build_script, trtexec
from normfold.targets.tensorrt.sidecar import Sidecar
from tests.targets.tensorrt.fakes import relu

PROFILE: dict[str, Shapes] = {
    "x": ((1, 4), (2, 4), (3, 4)),
    "mask": ((1, 1, 7), (2, 1, 7), (3, 1, 7)),
}


def script(folder: Path, options: EngineOptions) -> Path:
    relu(folder / "net.trt.onnx", "batch")
    sidecar = Sidecar(
        onnx="net.trt.onnx",
        flags=options.flags(),
        precision="float16",
        bindings=(asdict(Binding("x", "input", "float32", (-1, 4))),),
        profile={"x": PROFILE["x"]},
        input_normalisation={"mean": [0.5], "std": [0.2]},
    )
    path = folder / "net.build.py"
    path.write_text(build_script("net.engine", sidecar, options))
    return path


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """From another folder, without normfold or torch."""
    command = [sys.executable, "-I", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_it_builds_an_engine_and_its_sidecar(tmp_path: Path, rtx: Backend) -> None:
    ran = run(script(tmp_path, EngineOptions(gpu_arch=("sm89", "sm120"), workspace=512)))
    assert ran.returncode == 0, ran.stderr
    engine = tmp_path / "net.engine"
    assert ran.stdout == f"{engine}\n"
    assert engine.stat().st_size > 1000
    found = Sidecar.read(engine)
    found.check(engine, rtx.version, "sm120")
    assert (found.builder, found.targets) == ("tensorrt-rtx", ("sm89", "sm120"))
    assert found.flags == ("--gpu-arch sm89,sm120", "--workspace 512")
    assert found.input_normalisation == {"mean": [0.5], "std": [0.2]}
    assert (found.precision, len(found.onnx_sha256)) == ("float16", 64)


def test_without_options_rtx_is_for_all_that_it_is_in_normfold(
    tmp_path: Path, rtx: Backend
) -> None:
    ran = run(script(tmp_path, EngineOptions()))
    assert ran.returncode == 0, ran.stderr
    written = json.loads((tmp_path / "net.engine.json").read_text())
    assert sorted(written["targets"]) == sorted(rtx.targets(EngineOptions()))
    assert written["profile"]["x"] == [[1, 4], [2, 4], [3, 4]]


def test_what_does_not_build_leaves_the_older_engine(tmp_path: Path, rtx: Backend) -> None:
    path = script(tmp_path, EngineOptions())
    (tmp_path / "net.engine").write_text("older")
    (tmp_path / "net.trt.onnx").write_bytes(b"no network at all" * 9)
    ran = run(path)
    assert ran.returncode == 1
    assert "Failed to parse the ONNX model" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "net.engine").read_text() == "older"


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(backend="tensorrt"),
        EngineOptions(version_compatible=True),
        EngineOptions(hardware_compatible="ampere+"),
    ],
)
def test_options_of_tensorrt_are_not_dropped_by_rtx(options: EngineOptions, tmp_path: Path) -> None:
    path = script(tmp_path, options)
    ran = run(path)
    assert ran.returncode == 1
    assert ran.stderr == "not installed: tensorrt\n"
    text = path.read_text()
    assert ("BuilderFlag.VERSION_COMPATIBLE" in text) is options.version_compatible
    assert ("AMPERE_PLUS" in text) is (options.hardware_compatible != "none")


def test_the_trtexec_line() -> None:
    line = trtexec("net.trt.onnx", "net.engine", PROFILE, EngineOptions())
    assert line == (
        "trtexec --onnx=net.trt.onnx --stronglyTyped --saveEngine=net.engine "
        "--minShapes=x:1x4,mask:1x1x7 --optShapes=x:2x4,mask:2x1x7 --maxShapes=x:3x4,mask:3x1x7"
    )
    options = EngineOptions(workspace=64, version_compatible=True, hardware_compatible="same-cc")
    line = trtexec("a net.onnx", "net.engine", {}, options)
    assert line == (
        "trtexec '--onnx=a net.onnx' --stronglyTyped --saveEngine=net.engine "
        "--memPoolSize=workspace:64M --versionCompatible "
        "--hardwareCompatibilityLevel=sameComputeCapability"
    )
