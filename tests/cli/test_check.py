"""`normfold check`: many models, one exit code, each outcome by its name."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path

import pytest
from junitparser import JUnitXml
from sarif_pydantic import Sarif

from normfold.cli import check, runs
from tests.cli.conftest import ROOT, Cli, start

GOOD = 'network = "tests.cli.nets:tiny"\n'
CONFIG = f"""
[models.good]
{GOOD}require = ["fold-affine>=1"]

[models.policy]
{GOOD}require = ["fold-affine>=21"]

[models.branches]
network = "tests.cli.nets:branches"
input = "2x3x8x8"
"""
ENGINE = f"""
[models.engine]
{GOOD}export = "trt"
target = "trt-rtx"
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes find the networks of the tests, and no results of other tests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", "kept-results")


def configured(text: str, name: str = "models.toml") -> str:
    Path(name).write_text(text)
    return name


@pytest.mark.slow
def test_every_outcome_is_named_and_the_worst_counts(cli: Cli, tmp_path: Path) -> None:
    files = ["made/report.junit.xml", "report.sarif", "report.md"]
    reports = [word for name in files for word in ("--report", name)]
    ran = cli("check", "--config", configured(CONFIG), *reports, "--jobs", "2")
    assert ran.status == 4, ran.err
    *lines, note, last = ran.err.splitlines()
    assert sorted(lines) == ["branches: error", "good: pass", "policy: fail"]
    assert note.startswith("note: there is no models.lock")
    assert last == "NOT passed: 1 pass, 1 fail, 1 error"
    assert ran.out == Path("report.md").read_text()
    assert "| good | pass | tiny.onnx: equivalent in" in ran.out
    assert "**fail** policy: fold-affine>=21, found 2" in ran.out
    assert "the numbers in a tensor decide" in ran.out
    Sarif.model_validate_json(Path("report.sarif").read_text())
    suites = list(JUnitXml.fromfile("made/report.junit.xml"))
    found = {suite.name: (suite.failures, suite.errors) for suite in suites}
    assert found == {"good": (0, 0), "policy": (1, 0), "branches": (0, 1)}
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"kept-results", "made", "models.toml", *files[1:]}


@pytest.mark.slow
def test_files_are_kept_where_they_are_wanted(cli: Cli, tmp_path: Path) -> None:
    Path("json.py").write_text("raise SystemExit('code of the folder ran')")
    ran = cli("check", "--config", configured(CONFIG), "--only", "good", "-o", "kept", "--json")
    assert ran.status == 0, ran.err
    assert [model["name"] for model in ran.json["models"]] == ["good"]
    assert sorted(path.name for path in (tmp_path / "kept/good").iterdir()) == [
        "tiny.onnx",
        "tiny.report.json",
    ]


@pytest.mark.slow
def test_what_is_not_judged_here_is_not_green(cli: Cli) -> None:
    pytest.importorskip("tensorrt_rtx")
    for more, status in (("", 3), ("allow-unproved = true\n", 0)):
        ran = cli("check", "--config", configured(ENGINE + more))
        assert ran.status == status, ran.out + ran.err
        assert "| engine | unproved |" in ran.out
        assert "not judged here" in ran.out


@pytest.mark.slow
def test_annotations_of_github(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ran = cli("check", "--config", configured(CONFIG), "--only", "policy")
    assert ran.status == 1
    assert ran.out.splitlines()[0] == ("::error title=policy%3A policy::fold-affine>=21, found 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no table of models"),
        ("models = 3", "there is no table of models"),
        ("[models]\nnet = 3", "not a table"),
        ("[models.net]\ninput = 'x:1x3'", "does not say which model"),
        ("[models.net]\nnetwork = '--trust-pickle'", "does not say which model"),
        ("[models.net]\nnetwork = 'a.pt'\ncommand = 'explain'", "one of: convert"),
        ("[models.net]\nnetwork = 'a.pt'\nverfy = 'off'", "did you mean `verify`?"),
        ("[models.net]\nnetwork = 'a.pt'\nopset = 'x'", "`--opset` takes a whole number"),
        ("[models.net]\nnetwork = 'a.pt'\nverify = 'x'", "`--verify` does not take `x`"),
        ("[models.net]\nnetwork = 'a.pt'\noutput = 'x'", "says where files go"),
        ("[models.net]\nnetwork = 'a.pt'\nseed = [1, 2]", "takes a whole number"),
        ("[models.net]\nnetwork = 'a.pt'\nseed = {a = 1}", "wrong value"),
        ("[models.net]\nnetwork = 'a.pt'\nallow-unproved = 1", "wrong value"),
        ("[models.'../x']\nnetwork = 'a.pt'", "no file can be named after"),
        (f"[models.{'x' * 101}]\nnetwork = 'a.pt'", "no file can be named after"),
        ("[models.net]\nnetwork = 'a.pt'\ncommand = ['convert']", "one of: convert"),
        ('[models.net]\nnetwork = "a\\u0000.pt"', "wrong value for `models.net.network`"),
        (f"[models.net]\nnetwork = '{'x' * 5000}'", "wrong value for `models.net.network`"),
        (
            '[models.net]\nnetwork = "a.pt"\ninput = "x\\u0000"',
            "wrong value for `models.net.input`",
        ),
    ],
)
def test_a_wrong_configuration(text: str, message: str, cli: Cli) -> None:
    ran = cli("check", "--config", configured(text))
    assert ran.status == 2
    ran.one_error(message)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (CONFIG, "models.good.network"),
        ("[models.net]\nnetwork = 'a.pt'\ntrust-pickle = true", "models.net.trust-pickle"),
        ("[models.net]\nnetwork = 'a.pt'\npasses = 'pkg.mod:Own'", "models.net.passes"),
    ],
)
def test_a_configuration_that_was_only_found_runs_no_code(text: str, key: str, cli: Cli) -> None:
    configured(text, "normfold.toml")
    ran = cli("check")
    assert ran.status == 2
    ran.one_error(key, "only found", "--config normfold.toml")


def test_other_commands_leave_the_table_alone(cli: Cli) -> None:
    configured("to = 'folded'\n" + CONFIG, "normfold.toml")
    assert cli("convert", "tests.cli.nets:tiny", "--export", "onnx", "-o", "out").status == 0


def test_a_run_that_ends_without_a_report(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    Path("killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{ROOT}")
    config = configured("[models.net]\nnetwork = 'killed:make'\n")
    ran = cli("check", "--config", config)
    assert ran.status == 70
    assert "**error** run: the run ended with status -9, without a report" in ran.out


def test_the_worst_exit_code() -> None:
    order = [70, 2, 4, 1, 3, 0]
    for one, other in itertools.combinations(order, 2):
        assert check.worst([other, one, other]) == one
    assert check.worst([]) == 0


def test_an_unknown_model_and_a_report_of_no_known_form(cli: Cli) -> None:
    name = configured(CONFIG)
    cli("check", "--config", name, "--only", "god").one_error("there is no model `god`", "good")
    cli("check", "--config", name, "--report", "a.pdf").one_error("not written in this form")


def test_what_a_run_prints_is_its_report() -> None:
    data = {"ok": True, "exit_code": 0, "outcome": "done"}
    assert runs._entry("a", 0, json.dumps(data).encode(), b"").outcome == "done"
    assert runs._entry("a", 1, json.dumps(data).encode(), b"").exit_code == 1  # it does not agree


def test_the_configuration_of_the_documentation(cli: Cli) -> None:
    text = (ROOT / "docs/check.md").read_text().partition("```toml\n")[2].partition("```")[0]
    file, _, found = check.runs(Path(configured(text)))
    assert file == Path("models.toml")
    assert [(run.name, run.command, run.times) for run in found] == [
        ("resnet20", "convert", False),
        ("vit", "quantize", True),
    ]
    assert found[0].words[1:] == ("--trust-module=examples", "--require=fold-affine>=21")
    assert found[1].words == ("examples.nets:vit_tiny_shapes", "--quantize=int8-dynamic")


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_signal_ends_its_processes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pool, and of those that run alone behind it."""
    said = tmp_path / "called"
    monkeypatch.setenv("SLEEPS", str(said))
    text = f'[models.net]\nnetwork = "tests.cli.nets:sleeps"\ncommand = "{command}"\n'
    (tmp_path / "models.toml").write_text(text)
    process = start("check", "--config", "models.toml", cwd=tmp_path)
    while not said.exists():
        assert process.poll() is None
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    assert time.monotonic() - began < 20
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("key", "times"), [("scheme", True), ("quantize", True), ("precision", False)]
)
def test_what_is_timed_runs_alone(key: str, times: bool, tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    value = "int8" if times else "fp16"
    path.write_text(f"[models.net]\nnetwork = 'a.pt'\n{key} = '{value}'\n")
    (run,) = check.runs(path)[2]
    assert run.times == times


def test_the_factory_of_a_state_dict_is_code(cli: Cli) -> None:
    """`model` is the option of that name, as in the job of a report."""
    text = "[models.net]\nnetwork = 'a.safetensors'\nmodel = 'pkg.nets:make'\n"
    (run,) = check.runs(Path(configured(text, "normfold.toml")))[2]
    assert run.words == ("a.safetensors", "--model=pkg.nets:make")
    cli("check").one_error("models.net.model", "only found")
