"""What nobody foresaw ends in one line and exit 70, and errors are JSON where JSON was asked for."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import normfold
import normfold.errors
from tests.cli.conftest import TINY, Cli

STAGES = {
    "loading": "normfold.steps.open.load_source",
    "capturing": "normfold.steps.open.capture_loaded",
    "writing onnx": "normfold.targets.files.export_onnx",
    "judging tiny.onnx": "normfold.judge.verifier.Verifier.outputs",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_ends_in_one_line(
    stage: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody foresaw this\nand not this")

    monkeypatch.setattr(STAGES[stage], broken)
    ran = cli("convert", TINY, "-o", "out")
    assert ran.status == 70
    ran.one_error(
        f"a fault in normfold while {stage}", "RuntimeError: nobody foresaw this", "to try: "
    )
    (saved,) = re.findall(r"`([^`]+\.traceback\.txt)`", ran.err)
    assert "Traceback" in Path(saved).read_text()
    assert "nobody foresaw this\nand not this" in Path(saved).read_text()
    Path(saved).unlink()
    assert not list(tmp_path.glob("out/*"))


def test_the_line_of_the_network_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lost_net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x @ x\n\ndef make():\n    raise KeyError('lost')\n"
    )

    def broken(*_: Any, **__: Any) -> None:
        import lost_net  # type: ignore[import-not-found]

        lost_net.make()

    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr("normfold.steps.open.load_source", broken)
    ran = cli("convert", TINY)
    assert ran.status == 70
    ran.one_error("lost_net.py:8", "KeyError: 'lost'")


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["convert", "no.pt"], 4, "there is no such file"),
        (["convert", TINY, "--to", "foldd"], 2, "unknown preset `foldd`"),
        (["convert", TINY, "--quantize", "int8", "--precision", "fp16"], 2, "contradict"),
        (["explain", "NF999"], 2, "nothing is called `NF999`"),
        (["convert"], 2, "MODEL"),
        (["convert", TINY, "--seed", "x"], 2, "--seed"),
    ],
)
def test_errors_are_json_too(arguments: list[str], status: int, what: str, cli: Cli) -> None:
    ran = cli(*arguments, "--json")
    assert ran.status == status
    assert ran.err == ""
    found = json.loads(ran.out)
    assert (found["ok"], found["exit_code"]) == (False, status)
    assert what in found["error"]["what"]
    assert set(found["error"]) == {"what", "where", "found", "hint"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--quantize", "int8", "--max-drop", "0"],
        ["--quantize", "int8", "--keep-if-faster", "--max-drop", "20"],
    ],
)
def test_no_option_is_dropped_in_silence(arguments: list[str], cli: Cli) -> None:
    """A4: `convert` does what `quantize` does, or refuses."""
    ran = cli("convert", "tests.ranges.nets:made_residual", "--input", "2x3x12x10", *arguments)
    words = ran.out.splitlines()[-1]
    if "--keep-if-faster" not in arguments:
        lost = re.search(r"drift     lost ([\d.e+-]+) points", ran.out)
        assert lost is not None
        assert ran.status == (1 if float(lost[1]) > 0 or "NOT written" in words else 0)
    else:
        assert ran.status == 0, ran.out
        assert "timing" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save-synthetic", "nowhere/x.npz"], "the folder to write to does not exist"),
        (["--max-drop", "1", "--scheme", "int8-weights"], "nothing to judge `--max-drop` by"),
    ],
)
def test_what_cannot_be_is_said_first(arguments: list[str], message: str, cli: Cli) -> None:
    """The network returns an image: no answers that could be lost."""
    model = ["tests.judge.test_agreement:image", "--input", "2x3x8x8"]
    ran = cli("quantize", *model, *arguments, "-o", "out")
    assert ran.status == 2
    ran.one_error(message)
    assert not Path("out").exists()


def test_the_current_folder_is_gone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = cli("passes")
    assert ran.status == 2
    ran.one_error("the current folder is gone")


def test_a_misspelt_variable_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFOLD_CONVERT_TOO", "rmsnorm")
    monkeypatch.setenv("NORMFOLD_VERSION", "0.1.0")  # of somebody else's
    ran = cli("convert", TINY)
    assert ran.status == 2
    ran.one_error("`NORMFOLD_CONVERT_TOO`", "did you mean `NORMFOLD_CONVERT_TO`?")
    monkeypatch.delenv("NORMFOLD_CONVERT_TOO")
    monkeypatch.setenv("NORMFOLD_CONVRT_TO", "rmsnorm")
    ran = cli("convert", TINY)
    assert ran.status == 2
    ran.one_error("`NORMFOLD_CONVRT_TO`", "did you mean `NORMFOLD_CONVERT_TO`?")
    monkeypatch.delenv("NORMFOLD_CONVRT_TO")
    monkeypatch.setenv("NORMFOLD_CONVERT_VERIFY", "of")
    ran = cli("convert", TINY)
    ran.one_error("at the environment: NORMFOLD_CONVERT_VERIFY", "did you mean `off`?")
    monkeypatch.delenv("NORMFOLD_CONVERT_VERIFY")
    assert cli("explain", "NF105").status == 0


def test_published_files_can_be_read_by_others(cli: Cli) -> None:
    assert cli("convert", TINY, "--export", "pt2", "-o", "out", "--verify", "off").status == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path("out").iterdir()}
    assert len(modes) == 3
    assert len(set(modes.values())) == 1


@pytest.mark.parametrize("model", [3, None, ["net.pt"]])
def test_what_is_not_a_model(model: object, tmp_path: Path) -> None:
    with pytest.raises(normfold.errors.UsageError, match="a model cannot be a"):
        normfold.convert(model, output=tmp_path)


def test_what_breaks_behind_a_stop_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop within numpy's import leaves it half made, and the next use recurses."""
    app = importlib.import_module("normfold.cli.app")
    monkeypatch.setattr(app, "_stopped", 143)
    with pytest.raises(SystemExit) as ended:
        app._crashed(RecursionError("maximum recursion depth exceeded"))
    assert ended.value.code == 143
    assert capsys.readouterr().err == "error: interrupted\n"
