"""The example of a package with a pass: installed, it is found by name, runs, and passes its own tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "plugin"
PAGE = (ROOT / "docs" / "write-a-pass.md").read_text()
MODULE = """
import torch
from torch import nn


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) / 2.5
"""
PIPELINE = "fold-scale,canonicalize,fold-affine,restore,bake"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plug-in, built from a copy of its sources."""
    sources = tmp_path_factory.mktemp("sources") / "plugin"
    shutil.copytree(PLUGIN, sources, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    target = tmp_path_factory.mktemp("site-packages")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command = [
        "-m",
        "pip",
        "install",
        *quiet,
        "--no-build-isolation",
        "--target",
        f"{target}",
        f"{sources}",
    ]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return target


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of the user's own and a network of it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "heads.py").write_text(MODULE)
    code = "import heads; heads.torch.save(heads.Head(), 'head.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that sees normfold and the installed plug-in, and not the sources of the latter."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_it_is_listed_and_explained(site: Path, tmp_path: Path) -> None:
    ran = run(site, tmp_path, "-m", "normfold", "passes", "--json")
    assert ran.returncode == 0, ran.stderr[-2000:]
    row = json.loads(ran.stdout)["passes"][-1]
    assert (row["name"], row["exactness"]) == ("fold-scale", "exact")
    assert row["summary"] == "Scale the weight and the bias of a layer in place of its output."
    ran = run(site, tmp_path, "-m", "normfold", "explain", "fold-scale")
    assert "c (W x + b) = (c W) x + c b" in ran.stdout


@pytest.mark.slow
def test_it_runs_in_a_plan_and_in_a_conversion(site: Path, work: Path) -> None:
    options = ["--trust-module", "heads", "--input", "2x4", "--passes", PIPELINE]
    ran = run(site, work, "-m", "normfold", "plan", "head.pt", *options)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ran = run(site, work, "-m", "normfold", "convert", "head.pt", *options, "--output", "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = json.loads((work / "out" / "head.report.json").read_text())
    made = report["passes"][0]
    assert made["spec"] == "fold-scale"
    assert [item["site"] for item in made["applied"]] == ["fc"]
    assert report["passes"][-2]["certificate"]["state"] == "certified"  # in front of `bake`
    assert (work / "out" / "head.onnx").is_file()


@pytest.mark.slow
def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    """On the installed module: the tests are copied to where the sources are not."""
    shutil.copytree(PLUGIN / "tests", tmp_path / "tests")
    shutil.copy(PLUGIN / "pyproject.toml", tmp_path)
    ran = run(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert re.search(r"^4 passed", ran.stdout, re.MULTILINE)


def test_the_page_shows_the_whole_package() -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    files = ("normfold_plugin_example.py", "tests/test_fold_scale.py", "pyproject.toml")
    shown = [(PLUGIN / name).read_text() for name in files]
    assert [text for _, text in blocks] == shown
    assert [kind for kind, _ in blocks] == ["python", "python", "toml"]


def test_the_pass_is_as_short_as_the_page_says() -> None:
    text = (PLUGIN / "normfold_plugin_example.py").read_text()
    steps = text[text.index("    def match") : text.index("def _is_layer")]
    assert len([line for line in steps.splitlines() if line]) <= 30


def test_the_page_names_every_check() -> None:
    from normfold import testing

    checks = {name for name in testing.__all__ if name[0].islower()} - {"perturbed"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == checks
