"""Files of numpy: one array (`.npy`), or several by name or in order (`.npz`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from normfold.errors import LoadError, last_line

# hints for files of Python objects, by what is wanted
SAMPLES = "store arrays of numbers, samples padded to one size"
WEIGHTS = "store each weight as an array of numbers, as `np.savez(path, **{name: array})`"
_HEAD = b"\x93NUMPY"


def is_one(path: Path) -> bool:
    """Whether a file is one of numpy, by its first bytes or by what is in the archive."""
    with open(path, "rb") as file:
        head = file.read(len(_HEAD))
    if not head.startswith(b"PK"):
        return head == _HEAD
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read(path: Path, hint: str) -> Any:
    """An array, arrays by name, or a tuple of arrays that were saved without names; ``hint`` says what is wanted.

    Raises:
        LoadError: damaged, or Python objects in it.
    """
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays = {key: found[key] for key in found.files}
        # `np.savez(path, a, b)` gives no names
        loose = list(arrays) == [f"arr_{place}" for place in range(len(arrays))]
        return tuple(arrays.values()) if arrays and loose else arrays
    except Exception as error:
        objects = "bject" in str(error)
        raise LoadError(
            "the file holds Python objects" if objects else "the file cannot be read as arrays",
            where=str(path),
            found=last_line(error),
            hint=hint if objects else None,
        ) from None
