"""`convert --export trt`: what is written, said and refused, with TensorRT-RTX and with no TensorRT at all."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from normfold.errors import ExportError
from normfold.targets.order import sha256
from normfold.targets.tensorrt.sidecar import Sidecar
from tests.cli.conftest import TINY, Cli, contents, start
from tests.cli.nets import tiny
from tests.cli.test_convert import checked_report
from tests.cli.test_processes import wait_for
from tests.targets.tensorrt.conftest import NO_GPU

OUT = Path("out")
FILES = ["tiny.engine", "tiny.engine.json", "tiny.report.json", "tiny.trt.onnx"]
QUICK = ("convert", TINY, "-o", "out", "--export", "trt", "--verify", "off")
GPT2 = "tests.cli.transformer_nets:gpt2"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    from normfold.targets.tensorrt import backend, write

    for module in (backend, write):
        monkeypatch.setattr(module, "probe", lambda: NO_GPU)


@pytest.fixture
def old(cli: Cli) -> dict[str, bytes]:
    """Files of an older run, in the folder that `cli` made."""
    OUT.mkdir()
    for name in FILES:
        (OUT / name).write_text(f"an older {name}")
    return contents(OUT)


def types(path: Path) -> set[str]:
    """Types of the weights in an ONNX file."""
    graph = onnx.load(path).graph
    names = onnx.TensorProto.DataType.Name
    return {names(tensor.data_type) for tensor in graph.initializer} - {"INT64"}


def test_an_engine_is_built_and_not_run(cli: Cli) -> None:
    ran = cli("convert", TINY, "-o", "out", "--export", "trt")
    assert (ran.status, ran.err) == (0, "")
    assert sorted(contents(OUT)) == FILES
    lines = ran.out.splitlines()
    (line,) = [line for line in lines if line.startswith("engine ")]
    assert "tiny.engine: built, not run; tensorrt-rtx" in line
    assert "for sm80, sm86, sm89, sm120" in line
    assert "profile   x: 1x3x8x8 to 64x3x8x8, for 8x3x8x8" in lines
    assert lines[-1].startswith("wrote out/tiny.trt.onnx: equivalent in onnxruntime ")
    assert lines[-1].endswith(f"out/tiny.engine: not judged here ({NO_GPU})")
    report = checked_report(OUT / "tiny.report.json")
    kinds = [check["kind"] for check in report["checks"]]  # type: ignore[attr-defined]
    assert kinds == ["capture", "onnxruntime-all", "onnxruntime-none"]
    sidecar = Sidecar.read(OUT / "tiny.engine")
    sidecar.check(OUT / "tiny.engine", sidecar.version, "sm120")
    assert sidecar.onnx_sha256 == sha256(OUT / sidecar.onnx)
    assert sidecar.precision == "as captured"
    assert [item["name"] for item in sidecar.bindings][:1] == ["x"]
    assert report["engine"]["ran"] is False  # type: ignore[index]
    assert report["engine"]["targets"] == list(sidecar.targets)  # type: ignore[index]


def test_every_option(cli: Cli) -> None:
    options = ["--gpu-arch", "sm89,SM120", "--workspace", "512", "--dynamic", "x:0=1..4..16"]
    precision = ["--precision", "fp16", "--keep-fp32", "fc"]
    ran = cli(
        "convert", TINY, "-o", "out", "--export", "trt", "--export", "onnx", *options, *precision
    )
    assert (ran.status, ran.err) == (0, "")
    assert sorted(contents(OUT)) == ["tiny.engine", "tiny.engine.json", "tiny.onnx", *FILES[2:]]
    assert "for sm89, sm120; " in ran.out
    assert "within 0.02 of the original" in ran.out.splitlines()[-1]
    sidecar = Sidecar.read(OUT / "tiny.engine")
    assert sidecar.targets == ("sm89", "sm120")
    assert sidecar.flags == ("--gpu-arch sm89,sm120", "--workspace 512")
    assert sidecar.profile["x"] == ((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))
    assert sidecar.precision == "float16"
    assert sidecar.layers["float16"] > 0
    assert sidecar.layers["float32"] > 0
    assert [item["dtype"] for item in sidecar.bindings] == ["float32", "float32"]
    for name in ("tiny.onnx", "tiny.trt.onnx"):
        assert types(OUT / name) == {"FLOAT", "FLOAT16"}  # `fc` was kept
    report = checked_report(OUT / "tiny.report.json")
    islands = report["ranges"][0]["islands"]  # type: ignore[index]
    assert {item["why"] for item in islands} == {"kept by `fc`"}


@pytest.mark.slow
def test_a_sequence_of_any_length(cli: Cli) -> None:
    tokens = ["--input", "input_ids:2x16:i64", "--dynamic", "input_ids:1=1..16..40"]
    command = ["convert", GPT2, "-o", "out", "--export", "trt", "--to", "rmsnorm", *tokens]
    ran = cli(*command, "--verify", "off")
    assert (ran.status, ran.err) == (0, "")
    sidecar = Sidecar.read(OUT / "gpt2.engine")
    assert sidecar.profile["input_ids"] == ((1, 1), (8, 16), (64, 40))
    assert sidecar.bindings[0]["shape"] == [-1, -1]
    assert "`input_ids:0` is built for 1..8..64" in ran.out


REFUSED = {
    "gpu": (["--export", "trt", "--gpu-arch", "sm90"], ["does not build for `sm90`", "sm89"]),
    "no gpu": (["--export", "trt", "--gpu-arch", "ada"], ["`ada` is not a compute", "sm89,sm120"]),
    "timings": (["--export", "trt", "--timing-cache", "x"], ["--timing-cache"]),
    "versions": (["--export", "trt", "--version-compatible"], ["--version-compatible"]),
    "hardware": (["--export", "trt", "--hardware-compatible", "ampere+"], ["--gpu-arch"]),
    "sizes": (["--export", "trt", "--dynamic", "x:0=8..1"], ["NAME:AXIS=MIN..OPT..MAX"]),
    "workspace": (["--export", "trt", "--workspace", "0"], ["--workspace"]),
    "builder": (["--export", "trt", "--target", "tensort"], ["tensort", "trt-rtx"]),
    "another": (["--export", "trt", "--target", "ort-x86"], ["takes none", "--export onnx"]),
    "no engine": (["--gpu-arch", "sm89"], ["no engine is built", "`--export trt` builds one"]),
    "no sizes": (["--dynamic", "x:0=1..2..4"], ["`x:0=1..2..4`", "`--export trt`"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_model_is_loaded(case: str, cli: Cli, tmp_path: Path) -> None:
    arguments, parts = REFUSED[case]
    ran = cli("convert", "no.pt", *arguments)
    assert ran.status == 2, ran
    ran.one_error(*parts)
    assert "no.pt" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_an_axis_that_is_fixed(cli: Cli, tmp_path: Path) -> None:
    ran = cli(*QUICK, "--batch", "static", "--dynamic", "x:0=1..2..4")
    assert ran.status == 2
    ran.one_error("contradict each other")
    assert list(tmp_path.iterdir()) == []


def test_without_any_tensorrt(
    cli: Cli, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of older weights goes with its ONNX file; the script goes when there is an engine again."""
    with monkeypatch.context() as patch:
        for name in ("tensorrt", "tensorrt_rtx"):
            patch.setitem(sys.modules, name, None)
        ran = cli(*QUICK, "--dynamic", "x:0=1..4..16")
    assert ran.status == 3
    for part in (
        "`python tiny.build.py`",
        "trtexec --onnx=tiny.trt.onnx --stronglyTyped",
        "--maxShapes=x:16x3x8x8",
    ):
        assert part in ran.out
    last = ran.out.splitlines()[-1]
    assert "no engine: there is no builder of TensorRT engines here" in last
    assert "`pip install tensorrt-rtx`" in last
    assert sorted(contents(OUT)) == ["tiny.build.py", "tiny.report.json", "tiny.trt.onnx"]
    compile((OUT / "tiny.build.py").read_text(), "tiny.build.py", "exec")
    report = checked_report(OUT / "tiny.report.json")
    assert report["engine"] is None
    assert any("tiny.build.py" in note for note in report["notes"])  # type: ignore[attr-defined]
    assert cli(*QUICK).status == 0
    assert sorted(contents(OUT)) == FILES


def test_for_a_machine_that_has_tensorrt(cli: Cli) -> None:
    """What is not here by name is prepared for as well, though the other builder is."""
    ran = cli(*QUICK, "--target", "trt", "--version-compatible")
    assert ran.status == 3
    assert "--versionCompatible" in ran.out
    assert "no engine: `tensorrt` is not installed" in ran.out.splitlines()[-1]
    assert sorted(contents(OUT)) == ["tiny.build.py", "tiny.report.json", "tiny.trt.onnx"]
    assert "VERSION_COMPATIBLE" in (OUT / "tiny.build.py").read_text()


def test_a_failing_verdict_builds_no_engine(
    cli: Cli, broken: str, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        pytest.fail("an engine was built")

    monkeypatch.setattr("normfold.targets.tensorrt.write.build", build)
    ran = cli("convert", TINY, "-o", "out", "--export", "trt", "--passes", broken)
    assert ran.status == 1
    assert ran.out.splitlines()[-1].startswith("NOT written: ")
    assert "wrote" not in ran.out
    now = contents(OUT)
    assert {name: now[name] for name in old if "report" not in name} == {
        name: data for name, data in old.items() if "report" not in name
    }
    assert checked_report(OUT / "tiny.report.json")["engine"] is None


def test_a_file_that_the_runtime_finds_wrong_is_not_built(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.targets import RuntimeSession

    run = RuntimeSession.run
    monkeypatch.setattr(
        RuntimeSession, "run", lambda self, inputs: [y * 1.01 for y in run(self, inputs)]
    )
    monkeypatch.setattr(
        "normfold.targets.tensorrt.write.build", lambda *_, **__: pytest.fail("was built")
    )
    ran = cli("convert", TINY, "-o", "out", "--export", "trt")
    assert ran.status == 1, ran.err
    assert sorted(contents(OUT)) == ["tiny.report.json"]


def test_a_build_that_fails_leaves_the_older_engine(
    cli: Cli, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise ExportError("the engine could not be built", found="no kernel")

    monkeypatch.setattr("normfold.targets.tensorrt.write.build", build)
    ran = cli(*QUICK, "--precision", "fp16")
    assert ran.status == 1
    ran.one_error("could not be built", "no kernel")
    assert contents(OUT) == old


def test_an_engine_that_is_not_what_was_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.targets.tensorrt.builder import type_name

    def wrong(dtype: Any) -> str:
        return "float16" if type_name(dtype) == "float32" else type_name(dtype)

    monkeypatch.setattr("normfold.targets.tensorrt.builder.type_name", wrong)
    ran = cli(*QUICK)
    assert ran.status == 1
    ran.one_error("not what was asked for", "`x` has dtype float16, not float32")
    assert not OUT.exists()


def test_float64_is_said_plainly(cli: Cli) -> None:
    """TensorRT takes a program in it for float32 without a word."""
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    torch.export.save(torch.export.export(tiny().double(), (images,)), "wide.pt2")
    ran = cli("convert", "wide.pt2", "-o", "out", "--export", "trt", "--verify", "off")
    assert ran.status == 1
    ran.one_error("`x` has dtype float32, not float64", "no float64")
    assert not OUT.exists()


@pytest.mark.slow
def test_killed_while_building(cli: Cli, old: dict[str, bytes], tmp_path: Path) -> None:
    process = start(*QUICK, "--precision", "fp16", cwd=tmp_path)
    staged = tmp_path / "out" / f".normfold-{process.pid}" / "tiny.trt.onnx"
    assert wait_for(staged, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    now = contents(OUT)
    assert {name: now[name] for name in old} == old
    assert all(name.startswith(".normfold-") for name in now.keys() - old.keys())


def test_an_engine_and_its_sidecar_are_never_mixed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at around every rename: what a kill would leave."""
    assert cli(*QUICK).status == 0
    replace, moments = os.replace, list[tuple[bool, bool, bool]]()

    def look() -> None:
        engine, sidecar = OUT / "tiny.engine", OUT / "tiny.engine.json"
        if engine.exists() and sidecar.exists():
            found = json.loads(sidecar.read_text())
            onnx_of_it = found["onnx_sha256"] == sha256(OUT / "tiny.trt.onnx")
            moments.append((found["sha256"] == sha256(engine), onnx_of_it, True))
        else:
            moments.append((True, True, False))

    def watched(source: Path, target: Path) -> None:
        look()
        replace(source, target)
        look()

    monkeypatch.setattr(os, "replace", watched)
    ran = cli(*QUICK, "--precision", "bf16", "--batch", "static")
    assert (ran.status, ran.err) == (0, "")
    last = ran.out.splitlines()[-1]
    assert last.startswith("wrote out/tiny.trt.onnx: not judged: --verify off; out/tiny.engine: ")
    sidecar = Sidecar.read(OUT / "tiny.engine")
    assert (sidecar.precision, sidecar.profile) == ("bfloat16", {})
    assert sidecar.layers["bfloat16"] > 0
    assert all(whole and fits for whole, fits, _ in moments)
    assert moments[0][2]
    assert moments[-1][2]
    assert not all(there for _, _, there in moments)


def test_the_settings_file_sets_options_of_engines(cli: Cli) -> None:
    Path("normfold.toml").write_text('[convert]\nexport = ["trt"]\ngpu-arch = "sm89"\n')
    ran = cli("convert", TINY, "-o", "out", "--verify", "off", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["engine"]["targets"] == ["sm89"]
