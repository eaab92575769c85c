"""What is shipped for CI systems runs as it is written: the action, GitLab's template, the hook."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from normfold.report.rendering import RENDERINGS
from tests.cli.conftest import ROOT

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text())
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
CONFIG = """
[models.good]
network = "tests.cli.nets:tiny"
require = ["fold-affine>={}"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a runner keeps its things, a repository with a model among them."""
    path = tmp_path_factory.mktemp("runner")
    for name in ("clone", "temp", "kept"):
        (path / name).mkdir()
    return path


@pytest.fixture
def clone(place: Path) -> Path:
    """The repository, as it is checked out."""
    path = place / "clone"
    for name in ("output", "summary.md"):
        (place / name).unlink(missing_ok=True)
    config = path / "normfold.toml"
    if not config.is_file() or config.read_text() != CONFIG.format(1):
        config.write_text(CONFIG.format(1))
    return path


def restored(cache: Path, clone: Path) -> None:
    """Results of earlier jobs, as a runner restores them: no model runs twice."""
    for file in clone.parent.glob("temp/normfold-cache/*.json"):
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, cache)


def shell(text: str, clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A step's lines, as runners start them."""
    place = clone.parent
    environment = {
        **os.environ,
        "PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(place / "kept"),
        **variables,
    }
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", text]
    return subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def github(name: str, clone: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """A step of the action, its expressions replaced."""
    place, step = clone.parent, STEPS[name]
    defaults = {key: str(item.get("default", "")) for key, item in ACTION["inputs"].items()}
    output = place / "output"
    known = {f"inputs.{key}": value for key, value in {**defaults, **inputs}.items()}
    known |= {"github.event.pull_request.number": "7"}
    lines = output.read_text().splitlines() if output.exists() else []
    known |= {
        f"steps.check.outputs.{line.partition('=')[0]}": line.partition("=")[2] for line in lines
    }

    def replaced(match: re.Match[str]) -> str:
        return known[match[1]]

    variables = {
        key: re.sub(r"\$\{\{ (.*?) \}\}", replaced, str(value))
        for key, value in step.get("env", {}).items()
    }
    variables |= {
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
        "RUNNER_TEMP": str(place / "temp"),
    }
    return shell(step["run"], clone, **variables)


def test_a_check_that_passes(clone: Path) -> None:
    ran = github("Check", clone)
    assert ran.returncode == 0, ran.stderr
    place = clone.parent
    assert (place / "summary.md").read_text().startswith("| model | verdict |")
    found = dict(line.split("=", 1) for line in (place / "output").read_text().splitlines())
    assert found["status"] == "0"
    assert Path(found["sarif"]).is_file()
    assert list((place / "temp/normfold-cache").glob("*.json"))
    assert github("Verdict", clone).returncode == 0
    (place / "gh").write_text('#!/bin/sh\necho "$@"\n')
    (place / "gh").chmod(0o755)
    said = github("Comment", clone)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("pr comment 7 --edit-last --create-if-none --body-file ")
    assert Path(said.stdout.split()[-1]).read_text() == (place / "summary.md").read_text()


@pytest.mark.slow
def test_a_check_that_fails(clone: Path) -> None:
    """The step goes on, so that findings are sent; the last one fails."""
    (clone / "normfold.toml").write_text(CONFIG.format(9))
    ran = github("Check", clone, args="--jobs 1")
    assert ran.returncode == 0
    assert "::error title=good%3A policy::fold-affine>=9, found 2" in ran.stdout
    assert github("Verdict", clone).returncode == 1


def test_a_configuration_that_is_wrong(clone: Path) -> None:
    assert github("Check", clone, config="none.toml").returncode == 0
    assert github("Verdict", clone).returncode == 2


def test_forks_get_the_summary_only() -> None:
    for name in ("Code scanning", "Comment"):
        assert "!github.event.pull_request.head.repo.fork" in STEPS[name]["if"]
    assert [name for name in STEPS if "run" not in STEPS[name]] == [
        "Results of earlier runs",
        "Code scanning",
    ]
    assert STEPS["Code scanning"]["with"]["sarif_file"] == "${{ steps.check.outputs.sarif }}"


@pytest.mark.parametrize(
    "text", [STEPS["Install"]["run"], GITLAB[".normfold-check"]["before_script"][0]]
)
def test_the_line_that_installs(text: str, clone: Path, tmp_path: Path) -> None:
    """Into a folder of its own, from a copy, as setuptools builds in its source; what it needs is here."""
    made, source = tmp_path / "made", tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for name in ("normfold", "passes"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    ran = shell(
        text,
        clone,
        GITHUB_ACTION_PATH=str(source),
        PACKAGE=str(source),
        INDEX=ACTION["inputs"]["index"]["default"],
        REQUIREMENTS="",
        PIP_TARGET=str(made),
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip reads it as `no`
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    assert ran.returncode == 0, ran.stderr
    assert (made / "normfold" / "passes" / "bake.py").is_file()
    assert (made / "bin" / "normfold").is_file()


def test_the_template_for_gitlab(clone: Path) -> None:
    job = GITLAB[".normfold-check"]
    (line,) = job["script"]
    restored(clone / job["cache"]["paths"][0], clone)
    ran = shell(line, clone, CONFIG=job["variables"]["CONFIG"])
    assert ran.returncode == 0, ran.stderr
    for name in job["artifacts"]["paths"]:
        assert (clone / name).is_file()
    assert job["artifacts"]["reports"]["junit"] in job["artifacts"]["paths"]
    assert (clone / job["cache"]["paths"][0]).is_dir()


def test_the_hook_of_pre_commit(clone: Path) -> None:
    restored(clone.parent / "kept/normfold/check", clone)
    ran = shell(shlex.join(shlex.split(HOOK["entry"])), clone)
    assert ran.returncode == 0, ran.stderr
    pattern = re.compile(HOOK["files"])
    assert all(pattern.search(name) for name in ("a/net.py", "net.pt", "normfold.toml"))
    assert not pattern.search("README.md")
    assert HOOK["pass_filenames"] is False


def test_forms_of_reports_that_the_files_name_are_known() -> None:
    texts = [STEPS["Check"]["run"], GITLAB[".normfold-check"]["script"][0]]
    named = {name for text in texts for name in re.findall(r"report(\.[\w.]+)", text)}
    assert named <= set(RENDERINGS)
