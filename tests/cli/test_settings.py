"""Flags before environment, environment before normfold.toml, that before pyproject.toml; typos are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import normfold
from normfold.cli.settings import Option, settings
from normfold.conversion import Result
from normfold.errors import UsageError
from normfold.job import Job
from normfold.report import Report
from tests.cli.conftest import Cli

COMMANDS = {
    "convert": {
        "output": Option("output", False, named=True),
        "model": Option("factory", False, named=True),
        "trust-module": Option("trust_module", True, named=True),
        "data": Option("data", False),
        "seed": Option("seed", False),
    },
    "verify": {"seed": Option("seed", False), "model": Option("factory", False, named=True)},
}

Given = Callable[..., Job]


def preset(job: Job) -> str:
    assert job.rewrite is not None
    return job.rewrite.to


@pytest.fixture
def given(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The job that a convert command line asks for."""
    seen: list[Job] = []

    def execute(job: Job, say: Any) -> Result:
        seen.append(job)
        return Result(None, Report(), [])  # type: ignore[arg-type]

    monkeypatch.setattr(normfold, "execute", execute)

    def run(*arguments: str) -> Job:
        ran = cli("convert", "net.pt", *arguments)
        assert ran.status == 0, ran.err
        return seen[-1]

    return run


def test_the_defaults(given: Given) -> None:
    assert given() == Job.of({"model": "net.pt"})
    assert given().export.output == Path("out")


def test_each_source_wins_over_the_next(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text('[tool.normfold]\nto = "baked"\nseed = 1\n')
    assert (preset(given()), given().source.seed) == ("baked", 1)
    Path("normfold.toml").write_text('to = "rmsnorm"\n')
    assert (preset(given()), given().source.seed) == ("rmsnorm", 0)
    Path("named.toml").write_text('to = "crmsnorm"\noutput = "from-file"\n')
    assert preset(given("--config", "named.toml")) == "crmsnorm"
    monkeypatch.setenv("NORMFOLD_CONFIG", "named.toml")
    assert given().export.output == Path("from-file")
    monkeypatch.setenv("NORMFOLD_CONVERT_OUTPUT", "from-environment")
    assert given().export.output == Path("from-environment")
    assert given("-o", "from-flag").export.output == Path("from-flag")
    assert preset(given("--config=pyproject.toml")) == "baked"


@pytest.mark.parametrize(
    "line",
    [
        "trust-pickle = true",
        'trust-module = ["mypkg"]',
        'model = "pkg:make"',
        'output = "elsewhere"',
        'convert.data = "pkg.mod:loader"',
        'convert.metric = "pkg.mod:fn"',
        'passes = "canonicalize,evil:Pass"',
        'quantize.weights = "evil:Pass"',
        "bench.compile = true",
        'convert.checkpoint = "/etc/x"',
        'convert.save-synthetic = "x.npz"',
        'convert.timing-cache = "x"',
    ],
)
def test_a_found_file_sets_no_trust_code_or_path(line: str, cli: Cli) -> None:
    """It may have come with the model."""
    Path("normfold.toml").write_text(line + "\n")
    command = line.partition(".")[0]
    models = ("a.onnx", "b.onnx") if command == "bench" else ("net.pt",)
    ran = cli(command if command in ("quantize", "bench") else "convert", *models)
    assert ran.status == 2
    ran.one_error("only found", "--config normfold.toml")
    assert not Path("elsewhere").exists()


def test_a_named_file_must_be_there(cli: Cli) -> None:
    assert cli("convert", "net.pt", "--config", "no.toml").status == 2


def test_two_files_are_one_too_many(cli: Cli) -> None:
    ran = cli("convert", "net.pt", "--config", "a.toml", "--config=b.toml")
    assert ran.status == 2
    ran.one_error("`--config` is given twice")


def test_environment_and_keys_are_spelled_like_the_options(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMFOLD_CONFIG", "mine.toml")
    Path("mine.toml").write_text(
        'model = "pkg:make"\ntrust_module = "mine"\ninput = ["x:2x3", "y:2x4"]\njson = true\n'
        '[convert]\nverify = "each"\nexport = ["onnx", "pt2"]\n'
    )
    job = given()
    assert job.source.factory == "pkg:make"
    assert job.source.trust_modules == ("mine",)
    assert job.source.inputs == ("x:2x3", "y:2x4")
    assert job.export.export == ("onnx", "pt2")
    assert job.policy.verify == "each"
    monkeypatch.setenv("NORMFOLD_CONVERT_MODEL", "pkg:other")
    monkeypatch.setenv("NORMFOLD_CONVERT_INPUT", "z:2x5")
    monkeypatch.setenv("NORMFOLD_CONVERT_TRUST_MODULE", "a b")
    source = given().source
    assert (source.factory, source.inputs) == ("pkg:other", ("z:2x5",))
    assert source.trust_modules == ("a", "b")
    assert given("--trust-module", "c").source.trust_modules == ("c",)


def test_a_table_is_for_one_command(tmp_path: Path) -> None:
    file = tmp_path / "normfold.toml"
    file.write_text("seed = 3\n[convert]\nseed = 4\ntrust-module = ['a', 'b']\n")
    assert settings(COMMANDS, "convert", file) == {"seed": 4, "trust_module": ["a", "b"]}
    assert settings(COMMANDS, "verify", folder=tmp_path) == {"seed": 3}
    assert settings(COMMANDS, "convert", folder=tmp_path / "nothing-here") == {}


def test_paths_are_seen_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be something else is a path where it is there; a mark at the beginning is no text."""
    for name in ("ci", "here", "crops"):
        (tmp_path / name).mkdir()
    text = "output = '../made'\ndata = '../crops'\ntrust-module = ['../net']\nseed = 3\n"
    (tmp_path / "ci" / "a.toml").write_text(f"\ufeff{text}", encoding="utf-8")
    kinds: dict[str, Literal["only", "maybe"]] = {"output": "only", "data": "maybe"}
    options = {
        name: dataclasses.replace(option, path=kinds.get(name, ""))
        for name, option in COMMANDS["convert"].items()
    }
    monkeypatch.chdir(tmp_path / "here")
    found = settings({"convert": options}, "convert", Path("../ci/a.toml"))
    assert found.pop("output") == "../ci/../made"
    assert found.pop("data") == "../ci/../crops"
    assert found == {"trust_module": ["../net"], "seed": 3}
    (tmp_path / "crops").rmdir()
    assert settings({"convert": options}, "convert", Path("../ci/a.toml"))["data"] == "../crops"
    monkeypatch.chdir(tmp_path / "ci")
    assert settings({"convert": options}, "convert", Path("a.toml"))["output"] == "../made"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outptu = 'x'", r"unknown key `outptu`[\s\S]*did you mean `output`"),
        ("[covnert]\nseed = 1", r"unknown key `covnert`[\s\S]*did you mean `convert`"),
        ("[convert]\nseeds = 1", r"unknown key `convert.seeds`[\s\S]*did you mean `convert.seed`"),
        ("[verify]\noutput = 'x'", "unknown key `verify.output`"),
        ("zzz = 1", r"unknown key `zzz`[\s\S]*known: "),
        ("seed = [1, 2]", "wrong value for `seed`"),
        ("trust-module = {a = 1}", "wrong value for `trust-module`"),
        ("seed = ", "not valid TOML"),
    ],
)
@pytest.mark.parametrize("file", ["normfold.toml", "pyproject.toml"])
def test_what_is_wrong_in_a_file_is_refused(
    text: str, message: str, file: str, tmp_path: Path
) -> None:
    if file == "pyproject.toml":
        text = f"[tool.normfold]\n{text}".replace("\n[", "\n[tool.normfold.")
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        settings(COMMANDS, "convert", tmp_path / file)
    assert file in str(caught.value)


def test_a_tool_section_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nnormfold = 3\n")
    with pytest.raises(UsageError, match=r"`normfold` in `pyproject.toml` is not a table"):
        settings(COMMANDS, "convert", folder=tmp_path)


@pytest.mark.parametrize(
    "text", ["seed = ", "outptu = 'x'", "seed = 'many'", "[convert]\nverify = 'often'"]
)
def test_a_wrong_file_ends_a_command_with_2(text: str, cli: Cli) -> None:
    Path("normfold.toml").write_text(text)
    ran = cli("convert", "net.pt")
    assert ran.status == 2
    ran.one_error()


def test_a_wrong_value_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFOLD_CONVERT_SEED", "many")
    ran = cli("convert", "net.pt")
    assert ran.status == 2
    ran.one_error("NORMFOLD_CONVERT_SEED")
