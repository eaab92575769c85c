"""`normfold init`: a configuration that `normfold check` reads, and that holds today."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from normfold.cli import check
from tests.cli.conftest import ROOT, TINY, Cli

GPT2 = "tests.cli.transformer_nets:gpt2"


def models(path: str = "normfold.toml") -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = tomllib.loads(Path(path).read_text())["models"]
    return found


@pytest.mark.slow
def test_a_model_with_requirements_that_hold(cli: Cli) -> None:
    ran = cli("init", TINY)
    assert ran.status == 0, ran.err
    assert (
        ran.out == "wrote normfold.toml: next, `normfold check --config normfold.toml --update`\n"
    )
    (table,) = models().values()
    assert table == {"network": TINY, "require": ["fold-affine>=2", "batch-norm==0"]}
    text = Path("normfold.toml").read_text()
    assert all(
        line.startswith(("#", "[", "n", "r", " ", "]")) for line in text.splitlines() if line
    )
    Path("normfold.toml").write_text(
        text.replace('    # "', '    "')
    )  # what is offered is read, too
    assert "LayerNormalization==0" in models()["tiny"]["require"]  # type: ignore[operator]
    _, _, (run,) = check.runs(Path("normfold.toml"))
    ran = cli("convert", *run.words, "-o", "out")
    assert ran.status == 0, ran.out


def test_another_model_is_added_with_what_was_given(cli: Cli) -> None:
    Path("conf").mkdir()
    Path("conf/ci.toml").write_text('# mine\n[models."x.y"]\nnetwork = "net.pt"\n')
    asked = ["--input", "input_ids:2x12:i64", "--dynamic", "input_ids:1", "--seed", "3"]
    ran = cli("init", GPT2, *asked, "-o", "conf/ci.toml")
    assert ran.status == 0, ran.err
    assert Path("conf/ci.toml").read_text().startswith("# mine\n[models.")
    found = models("conf/ci.toml")
    assert list(found) == ["x.y", "gpt2"]
    require = found["gpt2"].pop("require")
    assert require == ["fold-affine>=4", "center-stream>=5", "layer-norm==0"]
    assert found["gpt2"] == {
        "network": GPT2,
        "input": ["input_ids:2x12:i64"],
        "dynamic": ["input_ids:1"],
        "seed": 3,
        "to": "rmsnorm",
    }
    _, _, runs = check.runs(Path("conf/ci.toml"))
    assert "--to=rmsnorm" in runs[1].words


def test_paths_are_relative_to_the_configuration(cli: Cli) -> None:
    Path("ci").mkdir()
    net = ROOT / "examples" / "models" / "resnet20.pt"
    Path("here.pt").symlink_to(net)
    ran = cli("init", "here.pt", "--trust-module", "examples", "--to", "folded", "-o", "ci/a.toml")
    assert ran.status == 0, ran.err
    assert models("ci/a.toml")["here"]["network"] == "../here.pt"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("normfold.toml", '[models.tiny]\nnetwork = "a.pt"\n', "there is a model `tiny` already"),
        ("ci.toml", "[", "cannot be added to"),
        ("pyproject.toml", "", "a TOML file of its own"),
        ("normfold.json", "", "a TOML file of its own"),
    ],
)
def test_nothing_is_overwritten(name: str, text: str, words: str, cli: Cli) -> None:
    Path(name).write_text(text)
    ran = cli("init", TINY, "-o", name)
    assert ran.status == 2
    ran.one_error(words)
    assert Path(name).read_text() == text


def test_a_model_that_is_not_there(cli: Cli) -> None:
    assert cli("init", "nothere.pt").status == 4
    assert not Path("normfold.toml").exists()
