"""Lines of source as CI services show them: by a path from the root of the repository."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"(?P<file>.+?):(?P<number>[1-9]\d*)(: (?P<text>.*)|$)", re.DOTALL)
_ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")  # of GitHub and of GitLab
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Place:
    """A line of a source file.

    Attributes:
        path: from the root of the repository where it lies below it, else absolute.
        number: counted from one.
        text: the line itself; empty where it is not known.
    """

    path: Path
    number: int
    text: str

    @property
    def own(self) -> bool:
        """True for a file of the repository: below its root, and of no package that is installed there."""
        return not self.path.is_absolute() and not set(_INSTALLED) & set(self.path.parts)


def root() -> Path:
    """Of the repository, as the CI service says it; the current folder elsewhere."""
    named = next(filter(None, map(os.environ.get, _ROOTS)), None)
    return Path(named).absolute() if named else Path.cwd()


def place(line: str, root: Path) -> Place | None:
    """Of ``file:number: text``, as reports have it, with a path from the current folder or an absolute one.

    Returns:
        Nothing where the text is not of that form.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    path = Path(os.path.abspath(found["file"]))
    for base in (root, root.resolve()):
        if path.is_relative_to(base):
            path = path.relative_to(base)
            break
    return Place(path, int(found["number"]), found["text"] or "")
