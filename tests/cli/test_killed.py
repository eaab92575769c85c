"""`normfold check` killed at any moment: what is left does no harm, and goes with the next run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import ROOT
from tests.cli.test_locked import NET, write

CONFIG = """
[models.a]
network = "net:make"
input = "2x3x8x8"
require = ["fold-affine>=1"]

[models.b]
network = "net:make"
input = "2x3x8x8"
batch = "static"
"""
OTHER = NET.replace("Linear(4, 2)", "Linear(4, 3)")
TIMES, LONGEST = 50, 9.0


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "normfold", "check", "--config", "normfold.toml", *more]


def gone(folder: Path) -> bool:
    """Whether every process that was started there has ended."""
    for process in psutil.process_iter(["cwd", "pid"]):
        if process.info["cwd"] == str(folder) and process.info["pid"] != os.getpid():
            return False
    return True


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "repository"
    place.mkdir()
    for name in ("kept", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{place}:{ROOT}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    write(str(place / "normfold.toml"), CONFIG)
    draw, killed = random.Random(0), 0
    for number in range(TIMES):
        write(str(place / "net.py"), (NET, OTHER)[number % 2])
        more = ["--update"] if number % 3 == 0 else []
        process = subprocess.Popen(
            command("--fresh", *more), cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.communicate(timeout=draw.uniform(0.0, LONGEST))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        deadline = time.monotonic() + 30
        while not gone(place):
            assert time.monotonic() < deadline, "a process outlived the command"
            time.sleep(0.1)
    assert killed > TIMES / 3
    bytes_of = []
    for text in (NET, OTHER):
        write(str(place / "net.py"), text)
        found = []
        for fresh in (False, True):
            ran = subprocess.run(
                command("--json", *(["--fresh"] * fresh)),
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
            models = json.loads(ran.stdout)["models"]
            assert all(model["ok"] for model in models), ran.stderr
            found.append([model["parameters_before"] for model in models])
        assert found[0] == found[1]  # what was kept is what a run finds now
        bytes_of.append(found[0])
    assert bytes_of[0] != bytes_of[1]
    left = [path.name for path in tmp_path.rglob("*") if "normfold-" in path.name]
    assert [name for name in left if not name.endswith(".json")] == []
