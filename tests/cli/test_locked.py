"""`normfold check` with a lock: what changed, in one sentence that names the cause; and results that are kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sarif_pydantic import Sarif
from torch import nn

from normfold.cli.locked import Lock
from tests.cli.conftest import ROOT, Cli
from tests.report.jenkins import require_jenkins

NET = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x)
        z = torch.relu(self.bn(y))
        return self.head(z.mean((2, 3)))


def make():
    return Net().eval()
"""
EDITED = NET.replace("return self.head(z.mean((2, 3)))", "return self.head(z.mean((2, 3))), y")
GOOD = '[models.good]\nnetwork = "net:make"\ninput = "2x3x8x8"\n'
ENGINE = GOOD.replace("good", "engine") + 'export = "trt"\ntarget = "trt-rtx"\n'
WEIGHTS = GOOD.replace("good", "weights").replace("net:make", "net.pt") + 'trust-module = "net"\n'
BRANCHES = '[models.branches]\nnetwork = "tests.cli.nets:branches"\ninput = "2x3x8x8"\n'


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One repository and one place for results, so that what a test found serves the next one."""
    return tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], cli: Cli) -> None:
    """The repository with a network, as it is checked out."""
    place, kept = folders
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", f"{place}:{ROOT}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    write("net.py", NET)
    write("normfold.toml", GOOD)


def write(name: str, text: str) -> None:
    """A file as a checkout leaves it: older than the run that reads it."""
    Path(name).write_text(text)
    then = time.time() - 10
    os.utime(name, (then, then))


def check(cli: Cli, *more: str) -> Any:
    return cli("check", "--config", "normfold.toml", *more)


def lock() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path("normfold.lock").read_text())
    return data


def commit(message: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["add", "net.py", "normfold.lock"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *words], check=True)


def test_a_second_run_takes_what_is_known(cli: Cli) -> None:
    assert check(cli, "--update", "--fresh").status == 0
    assert lock()["models"]["good"]["sites"]["bn"]["state"] == "gone"
    began = time.monotonic()
    ran = check(cli)
    assert ran.status == 0
    assert time.monotonic() - began < 2
    assert "good: pass, as before" in ran.err
    assert ran.out == check(cli).out


@pytest.mark.slow
def test_files_are_made_again_where_they_are_not_there(cli: Cli) -> None:
    check(cli, "-o", "out")
    assert "as before" in check(cli, "-o", "out").err
    Path("out/good/make.onnx").unlink()
    assert "as before" not in check(cli, "-o", "out").err
    assert Path("out/good/make.onnx").is_file()


@pytest.mark.slow
def test_a_variable_that_the_network_asks_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not ASCII, too: files of a while are not named."""
    asks = "import os\n" + NET.replace(
        "Linear(4, 2)", 'Linear(4, int(os.environ.get("WIDE", "2")))'
    )
    write("net.py", asks)
    write("normfold.toml", GOOD.replace("good", '"größe"'))
    first = check(cli)
    assert first.status == 0
    assert "| größe | pass | make.onnx: equivalent" in first.out
    assert "as before" in check(cli).err
    monkeypatch.setenv("WIDE", "3")
    assert "as before" not in check(cli).err


def test_a_norm_that_stops_folding_is_explained(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reader that is in the way, its line, and the commit that brought it."""
    subprocess.run(["git", "init", "-q"], check=True)
    check(cli, "--update")
    commit("The network")
    write("net.py", EDITED)
    commit("Return the features, too")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(Path.cwd()))
    ran = check(cli, "--report", "made.sarif")
    assert ran.status == 1
    told = "`bn` (batch-norm) stopped folding"
    annotation, row, line = [x for x in ran.out.splitlines() if told in x]
    assert row.startswith("| good | **fail** | not as its lock says: ")
    assert annotation.startswith("::error file=net.py,line=1")
    assert "NF" in line
    assert "`net.py` was edited since the lock (line 15, commit " in line
    assert "\u201cReturn the features, too\u201d" in line
    (found,) = [
        item
        for item in json.loads(Path("made.sarif").read_text())["runs"][0]["results"]
        if "stopped folding" in item["message"]["text"]
    ]
    place = found["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "net.py"
    assert place["region"]["startLine"] in (13, 14, 15)


def test_four_outcomes(cli: Cli) -> None:
    """Good; another checkpoint than in the lock; no capture; an engine that cannot be judged here."""
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(compile(NET, "net.py", "exec"), space)
    space["Net"].__module__ = "net"

    def save(net: nn.Module) -> None:
        import sys
        import types

        module = types.ModuleType("net")
        module.__dict__.update(space)
        sys.modules["net"] = module
        torch.save(net, "net.pt")
        del sys.modules["net"]
        os.utime("net.pt", (time.time() - 10,) * 2)

    net = space["Net"]().eval()
    save(net)
    write("normfold.toml", GOOD + WEIGHTS + ENGINE + BRANCHES)
    began = time.monotonic()
    ran = check(cli, "--update", "--jobs", "2")
    first = time.monotonic() - began
    assert "note: branches is not locked: it is not sound" in ran.err
    assert sorted(lock()["models"]) == ["engine", "good", "weights"]
    with torch.no_grad():
        net.bn.weight.mul_(1.01)
    save(net)
    files = ["--report", "made.junit.xml", "--report", "made.sarif"]
    ran = check(cli, "--jobs", "2", *files)
    assert ran.status == 4
    assert ran.err.splitlines()[-1] == "NOT passed: 1 pass, 1 fail, 1 unproved, 1 error"
    assert "`net.pt` is not the file of the lock (sha256 " in ran.out
    require_jenkins(Path("made.junit.xml").read_text())
    Sarif.model_validate_json(Path("made.sarif").read_text())
    began = time.monotonic()
    again = check(cli)
    assert time.monotonic() - began < 0.1 * first
    assert again.status == 4
    assert again.out == ran.out


def test_a_damaged_lock_is_refused(cli: Cli) -> None:
    for text in ("", "{}", '{"schema": 9, "models": {}}', '{"schema": 1, "models": {"a": 3}}'):
        write("normfold.lock", text)
        ran = check(cli)
        assert ran.status == 2
        ran.one_error("the lock cannot be read", "normfold check --update")
        assert Lock(Path("normfold.toml"), anew=True).models == {}  # `--update`, as the hint says


def test_a_lock_that_is_not_there_is_said(cli: Cli) -> None:
    ran = check(cli)
    assert ran.status == 0
    assert "note: there is no normfold.lock: nothing is compared with it" in ran.err
    Path("normfold.lock").symlink_to("nowhere")
    ran = check(cli)
    assert ran.status == 2
    ran.one_error("the lock is no file", "a link to what is not there")


@pytest.mark.slow
def test_options_for_all_models_are_a_cause(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    check(cli, "--update")
    monkeypatch.setenv("NORMFOLD_CONVERT_SEED", "3")
    ran = check(cli)
    assert "`NORMFOLD_CONVERT_SEED=3` is new" in ran.out


@pytest.mark.slow
def test_models_that_come_and_go(cli: Cli) -> None:
    check(cli, "--update")
    write("normfold.toml", GOOD + GOOD.replace("good", "other"))
    ran = check(cli)
    assert ran.status == 0
    assert "note: not in the lock: other (`normfold check --update`)" in ran.err
    write("normfold.toml", GOOD.replace("good", "other"))
    check(cli, "--update")
    assert list(lock()["models"]) == ["other"]
