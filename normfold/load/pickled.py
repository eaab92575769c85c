"""Files written by `torch.save`, read without running them."""

from __future__ import annotations

import gc
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from normfold.errors import LoadError, boundary, last_line
from normfold.load.admission import Admission
from normfold.load.archive import Storages, is_plain, is_zip, open_file
from normfold.load.making import Maker
from normfold.load.pointer import require_fetched
from normfold.load.rules import judge
from normfold.load.trust import Trust


def read(path: Path, trust: Trust) -> Any:
    """The object in a `torch.save` file, tensors on the CPU.

    Raises:
        LoadError: not such a file, a Git LFS pointer, damaged, a TorchScript archive, or refused by the rules.
    """
    require_fetched(path)
    if trust.pickle:
        is_zip(path, str(path))  # has sentences for what is no checkpoint
        return _unpickle(path)
    with _without_collector():
        records, storages = open_file(path, str(path))
        return objects(records, storages, str(path), trust.modules)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Many small objects are made and kept: a third of the time goes to looking for cycles among them."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def objects(records: Any, storages: Storages, where: str, trusted: tuple[str, ...] = ()) -> Any:
    """What records stand for, once the rules have admitted all of them; LoadError otherwise."""
    admission = Admission(trusted)
    with boundary("the file cannot be read", where):  # records of no known form
        judge(records, admission, where)
        return Maker(admission, storages, where).make(records)


def _unpickle(path: Path) -> Any:
    """With `--trust-pickle` the file runs what it names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_plain(path):
                return pickle.loads(path.read_bytes())
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise LoadError(
            "the file could not be read",
            where=str(path),
            found=last_line(error),
            hint="write it again with `torch.save` and check that the copy is complete",
        ) from None


def is_program(path: Path) -> bool:
    """Whether a zip file is a `torch.export` archive, whatever its suffix."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except (RuntimeError, ValueError):
        return False
    return any(
        name.rpartition("/")[2] in ("archive_format", "serialized_exported_program.json")
        for name in names
    )
