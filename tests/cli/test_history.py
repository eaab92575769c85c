"""Which commit changed a line since the lock: the nearest edit, and not the first one of the file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from normfold.cli.history import edits

LINES = [f"line {number}" for number in range(1, 21)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A lock and a file of 20 lines, of which two commits edited line 3 and line 15 since."""
    git(tmp_path, "init", "-q")
    (tmp_path / "normfold.lock").write_text("{}")
    commit(tmp_path, LINES, "The lock")
    commit(tmp_path, [*LINES[:2], "other", *LINES[3:]], "Edit line 3")
    commit(tmp_path, [*LINES[:2], "other", *LINES[3:14], "other", *LINES[15:]], "Edit line 15")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True)


def commit(folder: Path, lines: list[str], message: str) -> None:
    (folder / "net.py").write_text("\n".join(lines) + "\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


@pytest.mark.parametrize(
    ("line", "number", "subject"),
    [(0, 3, "Edit line 3"), (4, 3, "Edit line 3"), (15, 15, "Edit line 15"), (19, 15, "line 15")],
)
def test_the_nearest_edit(line: int, number: int, subject: str, repository: Path) -> None:
    said = edits(repository, repository / "normfold.lock")("net.py", line)
    assert said.startswith(f"line {number}, commit ")
    assert subject in said


def test_what_is_not_committed(repository: Path) -> None:
    path = repository / "net.py"
    path.write_text(path.read_text().replace("line 20", "more"))
    edit = edits(repository, repository / "normfold.lock")
    assert edit("net.py", 18) == "line 20, not committed"
    assert "Edit line 15" in edit("net.py", 15)


def test_lines_that_are_gone(repository: Path) -> None:
    text = (repository / "net.py").read_text().splitlines()
    commit(repository, [*text[:7], *text[10:]], "Drop three lines")
    said = edits(repository, repository / "normfold.lock")("net.py", 8)
    assert said.startswith("line 7, commit ")
    assert "Drop three lines" in said


def test_nothing_is_known_without_git(tmp_path: Path) -> None:
    (tmp_path / "normfold.lock").write_text("{}")
    assert edits(tmp_path, tmp_path / "normfold.lock")("net.py", 3) == ""
