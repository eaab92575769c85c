"""The command line in this process, and in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from normfold.cli import main

ROOT = Path(__file__).parents[2]
TINY = "tests.cli.nets:tiny"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The data on stdout; the test fails if that is not JSON, and JSON only."""
        return json.loads(self.out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    def one_error(self, *parts: str) -> None:
        """Assert one clear message on stderr, no traceback, no data."""
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("error: ") == 1, self.err
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, self.err


Cli = Callable[..., Ran]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process, in an empty folder; the error output of torch's C code counts too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["normfold", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, out, err)

    return run


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline with a pass from a plug-in that spoils the network's `fc`."""
    point = EntryPoint("scale-linears", "tests.judge.broken_passes:ScaleLinears", "normfold.passes")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    return "canonicalize,scale-linears{wrong=fc},fold-affine,restore,bake"


def start(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "normfold", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that put the tests in the background has them ignore it, and their children too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; none if there is no folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
