"""What goes wrong ends with one clear message, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.conftest import TINY, Cli, contents
from tests.cli.nets import tiny


class Writes:
    """Unpickled in full, it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"echo pwned > {self.target}",)


@pytest.mark.parametrize("command", ["convert", "inspect", "plan", "bisect", "doctor"])
def test_a_malicious_pickle_is_refused_by_name(command: str, cli: Cli, tmp_path: Path) -> None:
    proof = tmp_path / "pwned"
    module = tiny()
    module.conv.__dict__["note"] = [Writes(proof)]
    torch.save(module, "evil.pt")
    options = ["-o", "out"] if command == "convert" else []
    ran = cli(command, "evil.pt", "--trust-module", "tests", *options)
    assert ran.status == 4
    ran.one_error("evil.pt", "posix.system", "nothing in it was executed", "--trust-pickle")
    assert sorted(contents(tmp_path)) == ["evil.pt"]
    assert not Path("out").exists()
    pickle.loads(pickle.dumps(Writes(proof)))
    assert proof.read_text() == "pwned\n"  # so it would have been seen


def test_trust_pickle_is_warned_about(cli: Cli) -> None:
    torch.save(tiny(), "net.pt")
    refused = cli("plan", "net.pt")
    assert refused.status == 4
    refused.one_error("tests.cli.nets.Tiny", "--trust-module tests")
    ran = cli("plan", "net.pt", "--trust-pickle", "--json")
    assert ran.status == 0
    assert ran.err == "warning: --trust-pickle runs whatever code the file contains\n"
    assert ran.json["ok"] is True


def test_a_damaged_file(cli: Cli, tmp_path: Path) -> None:
    torch.save(nn.Linear(200, 200), "whole.pt")
    whole = Path("whole.pt").read_bytes()
    files = {
        "cut.pt": whole[: len(whole) // 2],
        "head.pt": whole[:100],
        "empty.pt": b"",
        "text.pt": b"this is not a checkpoint\n" * 20,
        "text.safetensors": b"neither is this\n" * 20,
        "text.pt2": b"nor this\n" * 20,
        "noise.pth": bytes(range(256)) * 8,
        "model.onnx": b"onnx",
        "notes.txt": b"text",
    }
    for name, data in files.items():
        Path(name).write_bytes(data)
    for name in files:
        ran = cli("convert", name, "-o", "out", "--model", TINY)
        assert ran.status == 4, name
        ran.one_error(name)
    missing = cli("convert", "missing.pt", "-o", "out")
    assert missing.status == 4
    missing.one_error("missing.pt")
    assert sorted(contents(tmp_path)) == sorted([*files, "whole.pt"])
    assert not Path("out").exists()


USAGE = {
    "wrong shape": (["convert", TINY, "--input", "x:2x5x8x8"], ["--input x:2x5x8x8"]),
    "malformed input": (["convert", TINY, "--input", "x:2xtwo"], ["x:2xtwo"]),
    "unknown input": (["convert", TINY, "--input", "y:2x3x8x8"], ["no input `y`"]),
    "unknown preset": (["convert", "no.pt", "--to", "foldd"], ["`foldd`", "mean `folded`?"]),
    "unknown pass": (
        ["convert", "no.pt", "--passes", "canonicalise"],
        ["`canonicalise`", "mean `canonicalize`?"],
    ),
    "unknown pass option": (
        ["convert", "no.pt", "-p", "fold-affine{gain=2}"],
        ["no option `gain=2`", "max-gain"],
    ),
    "malformed pipeline": (["plan", "no.pt", "-p", "bake,,bake"], ["     ^"]),
    "unknown target to bisect": (["bisect", "no.pt", "--to", "backed"], ["mean `baked`?"]),
    "unknown pass to show": (["inspect", "no.pt", "--graph", "-p", "baker"], ["mean `bake`?"]),
    "unknown format": (["convert", "no.pt", "--export", "tflite"], ["`tflite`", "onnx, pt2"]),
    "unknown target": (["convert", "no.pt", "--target", "ort-x68"], ["mean `ort-x86`?"]),
    "unknown command": (["confert", "no.pt"], ["confert", "--help"]),
    "unknown option": (["convert", "no.pt", "--ot", "folded"], ["--ot", "--help"]),
    "missing model": (["convert"], ["MODEL", "--help"]),
    "seed beyond 64 bits": (
        ["convert", "no.pt", "--seed", "9" * 20],
        ["--seed", "a number from 0 to"],
    ),
    "bad seed": (["convert", "no.pt", "--seed", "many"], ["--seed", "integer"]),
    "bad verify": (["convert", "no.pt", "--verify", "often"], ["often", "final"]),
    "malformed factory": (["convert", "tests.cli.nets:tiny(", "-o", "out"], ["tiny("]),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors(case: str, cli: Cli, tmp_path: Path) -> None:
    """What can be known before the model is loaded is: `no.pt` is not there, and that is never said."""
    arguments, parts = USAGE[case]
    ran = cli(*arguments)
    assert ran.status == 2, ran
    ran.one_error(*parts)
    assert "no.pt" not in ran.err.replace(" ".join(arguments), "")
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", TINY, "--opset", "3")
    assert ran.status == 2
    ran.one_error("opset 3 is too old")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_captured(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", "tests.cli.nets:branches", "-o", "out")
    assert ran.status == 4
    ran.one_error("if y.sum() > 0:", "normfold doctor")
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_the_runtime_has_no_kernel_for(cli: Cli, tmp_path: Path) -> None:
    """A file that its own runtime, which is here, cannot load is an error and is not written."""
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    torch.export.save(torch.export.export(tiny().double(), (images,)), "wide.pt2")
    ran = cli("convert", "wide.pt2", "-o", "new/out")
    assert ran.status == 1
    ran.one_error("onnxruntime has no CPU kernel", "--precision fp32")
    assert not Path("new/out/wide.onnx").exists()
    assert cli("convert", "wide.pt2", "-o", "new/out", "--precision", "fp32").status == 0
    stands_in = cli("convert", "wide.pt2", "-o", "new/out", "--target", "trt")
    assert stands_in.status == 0
    assert "not judged here (onnxruntime has no CPU kernel" in stands_in.out.splitlines()[-1]
    strict = cli("convert", "wide.pt2", "-o", "new/out", "--target", "trt", "--require-judged")
    assert strict.status == 3


def test_a_package_that_is_not_there(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    ran = cli("inspect", "timm:resnet18")
    assert ran.status == 3
    ran.one_error("timm", "pip install")


def test_verify_against_what_is_no_model(cli: Cli) -> None:
    """The file is looked at before the original is loaded, and none of this is a failed verdict."""
    ran = cli("verify", "no.pt", "missing.onnx")
    assert ran.status == 4
    ran.one_error("no such file", "missing.onnx")
    for name, data in {"text.onnx": b"text", "empty.onnx": b""}.items():
        Path(name).write_bytes(data)
        ran = cli("verify", TINY, name)
        assert ran.status == 4
        ran.one_error(name)
    Path("nets_of_user.py").write_text(
        "from torch import nn\ndef flat():\n    return nn.Linear(4, 5).eval()\n"
    )
    ran = cli("verify", TINY, "nets_of_user:flat")
    sys.modules.pop("nets_of_user")
    assert ran.status == 2
    ran.one_error("does not run on the inputs of the original")


def test_no_command_at_all_shows_the_help(cli: Cli) -> None:
    ran = cli()
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("Usage: ")
    assert "convert" in ran.err


@pytest.mark.parametrize("output", ["taken", "taken/inner", "/proc/normfold/out"])
def test_an_output_folder_that_cannot_be_written(output: str, cli: Cli, tmp_path: Path) -> None:
    Path("taken").write_text("mine")
    ran = cli("convert", TINY, "-o", output, "--verify", "off")
    assert ran.status in (1, 2)
    ran.one_error("output", output)
    assert contents(tmp_path) == {"taken": b"mine"}


def test_no_permission_is_known_before_the_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    ran = cli("convert", "no.pt", "-o", "closed/out")
    assert ran.status == 2
    ran.one_error("closed/out", "no permission")


def test_a_folder_that_refuses_the_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk, say: the old file stays."""
    Path("out").mkdir()
    Path("out/tiny.onnx").write_text("old")

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    ran = cli("convert", TINY, "-o", "out", "--verify", "off")
    assert ran.status == 1
    ran.one_error("No space left")
    assert contents(tmp_path) == {"out/tiny.onnx": b"old"}


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.onnx.data", "tiny.report.json"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(name: str, cli: Cli) -> None:
    Path("out", name).mkdir(parents=True)
    Path("out/tiny.backup").mkdir()
    ran = cli("convert", TINY, "-o", "out")
    assert ran.status == 2
    ran.one_error(name, "a folder has its name", "--name")
    assert cli("convert", TINY, "-o", "out", "--name", "other").status == 0
