"""Git LFS pointers: the few lines that stand in a clone for a file that was not fetched."""

from __future__ import annotations

import re
from pathlib import Path

from normfold.errors import LoadError

_FIRST = b"version https://git-lfs.github.com/spec/v1"


def require_fetched(path: Path) -> None:
    """LoadError where the file is a Git LFS pointer; nothing for any other file.

    Source: the Git LFS specification (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
    """
    with open(path, "rb") as file:
        text = file.read(1024)
    if not text.startswith(_FIRST):
        return
    size = re.search(rb"^size (\d+)$", text, re.MULTILINE)
    raise LoadError(
        f"`{path.name}` is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself",
        where=str(path),
        found=f"it stands for a file of {int(size[1]):,} bytes" if size else None,
        hint="`git lfs pull` in the cloned repository fetches the file (`git lfs install` comes first, once)",
    )
