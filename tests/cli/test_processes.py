"""Killed, interrupted, cut off: the old output stays whole, or there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normfold.files import publish, staging
from tests.cli.conftest import ROOT, TINY, Cli, contents, start


def staged(folder: Path, pid: int) -> Path:
    return folder / f".normfold-{pid}"


def wait_for(path: Path, process: subprocess.Popen[str]) -> bool:
    """True as soon as the path exists, False if the process ends before."""
    while process.poll() is None:
        if path.exists():
            return True
        time.sleep(0.002)
    return path.exists()


@pytest.mark.slow
def test_kill_9_while_writing(cli: Cli, tmp_path: Path) -> None:
    """At two places of the writing; then a run succeeds and sweeps what the killed ones left."""
    out = tmp_path / "out"
    assert cli("convert", f"{TINY}(seed=1)", "-o", out, "--verify", "off").status == 0
    old = contents(out)
    assert sorted(old) == ["tiny.onnx", "tiny.report.json"]
    killed = []
    for name in ("", "tiny.onnx"):
        process = start("convert", TINY, "-o", out, cwd=tmp_path)
        caught = wait_for(staged(out, process.pid) / name, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert caught, "the process ended before it wrote"
        assert process.returncode == -signal.SIGKILL
        killed.append(staged(out, process.pid))
        now = contents(out)
        assert {name: now[name] for name in old} == old
        assert all(Path(name).parts[0].startswith(".normfold-") for name in now.keys() - old.keys())
    assert killed[-1].is_dir()
    ran = cli("convert", TINY, "-o", out, "--verify", "off")
    assert ran.status == 0, ran.err
    assert sorted(path.name for path in out.iterdir()) == ["tiny.onnx", "tiny.report.json"]
    assert contents(out)["tiny.onnx"] != old["tiny.onnx"]


def test_the_output_is_whole_at_every_moment(cli: Cli, tmp_path: Path) -> None:
    """What a kill would leave is what lies on the disk then: look at it before every change of the folder."""
    out = tmp_path / "out"
    assert cli("convert", f"{TINY}(seed=1)", "-o", out, "--verify", "off").status == 0
    old, seen = contents(out), list[dict[str, bytes]]()
    changes = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
    watching = True

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal watching
        if watching and event in changes and str(out) in str(arguments[0]):
            watching = False  # reading the folder opens its files
            seen.append({k: v for k, v in contents(out).items() if not k.startswith(".normfold-")})
            watching = True

    sys.addaudithook(look)  # cannot be taken away again: switched off below
    try:
        assert cli("convert", TINY, "-o", out, "--verify", "off").status == 0
    finally:
        watching = False
    new = contents(out)
    assert len(seen) > 10
    assert new["tiny.onnx"] != old["tiny.onnx"]
    for moment in seen:
        for name in old:
            assert moment.get(name) in (None, old[name], new[name])


def test_weights_beside_the_model_are_never_mixed(tmp_path: Path) -> None:
    """The old model goes before its weights are replaced; weights that are not read any more go last."""
    out, moments = tmp_path / "out", list[tuple[str | None, str | None]]()
    out.mkdir()
    files = out / "net.onnx", out / "net.onnx.data"
    for path in files:
        path.write_text("old")
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        moments.append(read(*files))
        replace(source, target)
        moments.append(read(*files))

    def read(model: Path, data: Path) -> tuple[str | None, str | None]:
        texts = [path.read_text() if path.exists() else None for path in (model, data)]
        return texts[0], texts[1]

    with pytest.MonkeyPatch.context() as patch, staging(out) as temporary:
        patch.setattr(os, "replace", look)
        for path in files:
            (temporary / path.name).write_text("new")
        assert publish(temporary, out) == sorted(files)
    assert ("new", "new") in moments
    assert not {("old", "new"), ("new", "old")} & set(moments)
    with staging(out) as temporary:
        (temporary / "net.onnx").write_text("newer")
        publish(temporary, out)
    assert contents(out) == {"net.onnx": b"newer"}


def test_only_folders_of_dead_processes_are_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = staged(tmp_path, ended.pid), staged(tmp_path, os.getppid())
    other = tmp_path / ".normfold-notes"
    for folder in (dead, alive, other):
        folder.mkdir()
    with staging(tmp_path) as own:
        assert own == staged(tmp_path, os.getpid())
        assert own.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])


def test_control_c(tmp_path: Path) -> None:
    called = tmp_path / "called"
    process = start(
        "convert", "tests.cli.nets:sleeps", "-o", "out", cwd=tmp_path, SLEEPS=str(called)
    )
    assert wait_for(called, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "error: interrupted"
    assert sorted(contents(tmp_path)) == ["called"]
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    process = start("passes", "--json", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")  # not 0 and not 1: those are verdicts


def test_the_launcher_of_a_clone(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ran.stdout.split()[0], ran.stderr) == ("normfold", "")


LOSES = """
import os, signal, time, torch, weakref

class Slow(torch.nn.Linear):
    def forward(self, x):
        thing = torch.nn.Identity()
        watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.{name}))
        del thing
        time.sleep(20)
        return super().forward(x)

def make():
    return Slow(3, 3).eval()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stop_in_a_callback_is_not_lost(name: str, status: int, tmp_path: Path) -> None:
    """Python drops what is raised in the callback of a weak reference."""
    (tmp_path / "slow.py").write_text(LOSES.format(name=name))
    began = time.monotonic()
    process = start("convert", "slow:make", "--input", "2x3", "-o", "out", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert time.monotonic() - began < 19
    assert "ignored" not in err
    assert not list(tmp_path.glob("**/*.onnx"))
