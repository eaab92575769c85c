"""How a source file was changed since a lock was committed, as git tells it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))?", re.MULTILINE)
_BLAME = re.compile(r"(?P<commit>[0-9a-f]{40,64}) .*?^summary (?P<subject>.*?)$", re.M | re.S)
_SECONDS = 10.0


def edits(folder: Path, path: Path) -> Callable[[str, int], str]:
    """Of a file near one of its lines: the line that was edited, and the commit that did it.

    Says nothing without git, or where the lock is not committed.

    Args:
        folder: of the configuration; names of files are seen from it.
        path: of the lock.
    """
    base = _git(folder, "log", "-1", "--format=%H", "--", path.name).strip()

    def edit(name: str, line: int) -> str:
        if not base:
            return ""
        changed = _git(folder, "diff", "-U0", base, "--", name)
        hunks = [(int(a), int(b or 1)) for a, b in _HUNK.findall(changed)]
        if not hunks:
            return ""
        first, count = min(hunks, key=lambda hunk: _distance(hunk, line)) if line else hunks[0]
        number = min(max(line, first), first + count - 1) if line and count else first
        commit = _commit(folder, base, name, number if count else 0)
        return ", ".join(filter(None, (f"line {number}", commit)))

    return edit


def _distance(hunk: tuple[int, int], line: int) -> int:
    first, count = hunk
    return max(first - line, line - (first + max(count, 1) - 1), 0)


def _commit(folder: Path, base: str, name: str, line: int) -> str:
    """The one that a line is of, since ``base``; the last one of the file where the line is gone (0)."""
    if line:
        words = ["--porcelain", "-L", f"{line},{line}", f"^{base}", "--", name]
        if blamed := _BLAME.match(_git(folder, "blame", *words)):
            if not blamed["commit"].strip("0"):
                return "not committed"
            return f"commit {blamed['commit'][:7]} \u201c{blamed['subject']}\u201d"
    if _git(folder, "diff", "--name-only", "HEAD", "--", name).strip():
        return "not committed"
    last = _git(folder, "log", "-1", "--format=%h %s", f"{base}..HEAD", "--", name).strip()
    found, _, subject = last.partition(" ")
    return f"commit {found} \u201c{subject}\u201d" if found else ""


def _git(folder: Path, command: str, *words: str) -> str:
    """What git prints; nothing where there is none. Nothing that a repository configures is started."""
    more = {"diff": ["--no-ext-diff", "--no-textconv", "--no-color"], "blame": ["--no-textconv"]}
    try:
        ran = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", command, *more.get(command, ()), *words],
            cwd=folder,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.decode("utf-8", "replace") if ran.returncode == 0 else ""
