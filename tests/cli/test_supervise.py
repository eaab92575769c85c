"""Commands in a process of their own: with the rules switched off, what a file runs reaches nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold.job import confinement
from tests.cli.conftest import Cli, contents, start

pytestmark = pytest.mark.skipif(bool(confinement.lacks()), reason=f"no {confinement.lacks()}")


LIMITED = """
import sys
from normfold.cli import main, supervise
confine = supervise.confinement.confine
def soon(writable):
    found = confine(writable)
    import normfold.load.limits
    normfold.load.limits.SECONDS = 1
    return found
supervise.confinement.confine = soon
main()
"""


class Runs:
    """Unpickled in full, it runs this."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def ended(*arguments: str | Path, cwd: Path, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), tmp_path / "work/m.pt")
    return tmp_path / "work/m.pt"


def test_what_a_trusted_pickle_runs_reaches_nothing(tmp_path: Path) -> None:
    """`--trust-pickle` lifts the rules, and not the confinement."""
    victim, work = tmp_path / "victim.txt", tmp_path / "work"
    victim.write_text("mine")
    work.mkdir()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    attacks = [
        f"open({str(victim)!r}, 'w').write('pwned')",
        f"__import__('os').remove({str(victim)!r})",
        f"__import__('subprocess').run(['touch', {str(tmp_path / 'ran')!r}])",
        f"__import__('os').posix_spawn('/bin/touch', ['touch', {str(tmp_path / 'ran')!r}], {{}})",
        f"__import__('socket').create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)",
        f"__import__('torch').from_file({str(victim)!r}, shared=True, size=1).zero_()",
        f"__import__('ctypes').CDLL(None).creat({str(tmp_path / 'made')!r}.encode(), 0o644)",
        f"__import__('os').kill({os.getpid()}, 10)",
    ]
    tried = "\n".join(
        f"try:\n    {code}\nexcept BaseException as error:\n    refused.append(type(error).__name__)"
        for code in attacks
    )
    tried = f"refused = []\n{tried}\nraise ValueError(f'refused {{len(refused)}}: {{refused}}')"
    torch.save({"w": torch.ones(1), "x": Runs(tried)}, work / "m.pt")
    status, _, err = ended("inspect", "m.pt", "--trust-pickle", cwd=work)
    assert status == 4, err
    # `creat` and `kill` of C give a number back, and torch's own error is its own
    assert f"refused {len(attacks) - 1}" in err, err
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim.txt", "work"]
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


def test_the_report_says_what_was_given_up(model: Path) -> None:
    status, out, err = ended(
        "convert", "m.pt", "--input", "2x3", "-o", "new/out", "--json", cwd=model.parent
    )
    assert status == 0, err
    assert json.loads(out)["confinement"] == (
        "confined: writes in its own folders only, starts no program, opens no connection"
    )
    assert (model.parent / "new/out/m.onnx").is_file()
    before = list(Path(tempfile.gettempdir()).glob(f"normfold-{os.getpid()}-*"))
    assert before == []


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"no model")
    status, _, err = ended("convert", "m.pt", "-o", "a/b/out", cwd=tmp_path)
    assert status == 4, err
    assert list(contents(tmp_path)) == ["m.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt"]


def test_a_signal_to_the_parent_clears_up(model: Path) -> None:
    net = "import time, torch\nclass Slow(torch.nn.Linear):\n    def forward(self, x):\n"
    net += "        open('out/started', 'w')\n        time.sleep(60)\n"
    (model.parent / "slow.py").write_text(net + "def make():\n    return Slow(3, 3)\n")
    torch.save(nn.Linear(3, 3).state_dict(), model)
    process = start("convert", "m.pt", "--model", "slow:make", "--input", "2x3", cwd=model.parent)
    while not (model.parent / "out/started").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    assert "Traceback" not in err
    assert not list(model.parent.glob("**/.normfold-*"))


@pytest.mark.slow
def test_nothing_outlives_the_command_or_follows_links(model: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    code = f"""
import os, time
folder = os.environ["TMPDIR"]
os.symlink({str(victim)!r}, folder + "/a.traceback.txt")
os.mkdir(folder + "/b.traceback.txt")
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(2)
        open("late", "w")
        time.sleep(20)
    os._exit(0)
raise ValueError("done")
"""
    torch.save({"w": torch.ones(1), "x": Runs(code)}, model)
    out = model.parent / "out"
    status, _, err = ended(
        "convert", "m.pt", "--trust-pickle", cwd=model.parent, TMPDIR=str(tmp_path)
    )
    assert status == 4, err
    time.sleep(3)
    assert not (out / "late").exists()
    assert not (model.parent / "late").exists()
    assert list(victim.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim", "work"]


def test_a_process_that_crashes_is_told(model: Path) -> None:
    torch.save({"w": torch.ones(1), "x": Runs("__import__('ctypes').string_at(0)")}, model)
    status, _, err = ended("convert", "m.pt", "--trust-pickle", cwd=model.parent)
    assert status == 4, err
    assert "SIGSEGV" in err


@pytest.mark.slow
def test_reading_is_limited(model: Path) -> None:
    """Memory that a file asks for, and time that it takes, in a process that is ours to limit."""
    torch.save({"w": torch.ones(1), "x": Runs("bytearray(6 * 2**30)")}, model)
    status, _, err = ended("inspect", "m.pt", "--trust-pickle", cwd=model.parent)
    assert status == 4, err
    assert "MemoryError" in err
    (model.parent / "patient.py").write_text("def make():\n    while True:\n        pass\n")
    torch.save(nn.Linear(3, 3).state_dict(), model)
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, "inspect", "m.pt", "--model", "patient:make"],
        cwd=model.parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 4, ran.stderr
    assert "takes too long" in ran.stderr


@pytest.mark.parametrize(
    "body", ["def make():\n    raise SystemExit(0)\n", "raise SystemExit(0)\n"]
)
def test_code_that_leaves_is_a_load_error(body: str, cli: Cli) -> None:
    name = f"leaves{len(body)}"
    Path(f"{name}.py").write_text(body)
    ran = cli("convert", f"{name}:make", "--input", "2x3")
    assert ran.status == 4
    ran.one_error("SystemExit")


@pytest.mark.slow
def test_the_current_folder_comes_last(model: Path) -> None:
    """A file beside the model does not stand in for a library."""
    for name in ("typer", "torch", "json", "rich", "numpy", "difflib", "onnx"):
        (model.parent / f"{name}.py").write_text("raise SystemExit('pwned')\n")
    status, _, err = ended("convert", "m.pt", "--input", "2x3", cwd=model.parent)
    assert status == 0, err


def test_temporary_folders_of_killed_runs_are_swept(model: Path, tmp_path: Path) -> None:
    left = tmp_path / "normfold-999999999-abc"
    left.mkdir()
    other = tmp_path / "normfold-mine"
    other.mkdir()
    status, _, err = ended(
        "inspect", "m.pt", "--input", "2x3", cwd=model.parent, TMPDIR=str(tmp_path)
    )
    assert status == 0, err
    assert not left.exists()
    assert other.exists()


@pytest.mark.slow
def test_closed_streams(model: Path) -> None:
    command = f"{sys.executable} -m normfold inspect m.pt --input 2x3"
    for redirect, status in ((">&- 2>&-", 0), ("> /dev/full", 1)):
        ran = subprocess.run(
            f"{command} {redirect}", shell=True, cwd=model.parent, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert ran.returncode == status, (redirect, ran.stderr)
        assert "fault" not in ran.stderr
    ran = subprocess.run(
        f"{command} --to nothing --json | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=model.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in ran.stderr
    assert ran.stdout.strip() in ("2", "141")
