"""Results of earlier runs of `check`: one holds while nothing has changed that it was made from.

What is known beforehand is the name of an entry: the command, the settings, the versions of all packages and
normfold's own source, the processor, and for what is timed the machine. What a run turns out to read (checkpoint,
the user's modules, samples) is in the entry with the hash of its bytes, and compared each time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from normfold.errors import NormfoldError
from normfold.files import publish, staging
from normfold.report.cases import Entry
from normfold.report.machine import processor

_FORMAT = 1
_KEPT = 30 * 86400.0  # seconds that an entry lies unused before it goes
_FOLDERS = ("--data", "--inputs-from")  # options that may name one
_LASTING = (0, 1, 3, 4)  # exit codes: 70 is a bug, and another run may meet it or not


def default_folder() -> Path:
    """Where results are kept: ``$XDG_CACHE_HOME/normfold/check``."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "normfold" / "check"


@dataclass(frozen=True)
class Key:
    """What names an entry.

    Attributes:
        words: the command, its model and its options.
        settings: options of the configuration that hold for all models, as plain data.
        folder: that paths are relative to.
        timed: the result depends on the machine.
        output: where its files are kept, which its report names; empty for nowhere.
    """

    name: str
    words: tuple[str, ...]
    settings: Any
    folder: Path
    timed: bool
    output: str = ""

    def digest(self) -> str:
        """Everything that is known before the run, hashed."""
        parts = [_FORMAT, self.words, self.settings, str(self.folder.resolve()), _versions()]
        parts += [processor(), _variables(), [_machine()] if self.timed else [], self.output]
        return _digest(parts)

    def given(self) -> list[Path]:
        """The files that words name, and the folders that are a model or hold samples."""
        _, model, *options = self.words
        found = [self.folder / model]
        for word in options:
            flag, _, text = word.partition("=")
            path = self.folder / (text or word)
            if (text or word) and (path.is_file() or flag in _FOLDERS):
                found.append(path)
        return [path for path in found if len(str(path)) < 4096 and path.exists()]


class Cache:
    """A folder of entries; two runs may use it at once, and one may be killed at any moment.

    Attributes:
        notes: what was wrong with an entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def get(self, key: Key) -> Entry | None:
        """What an earlier run found, if it holds."""
        file = self._file(key)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            body = data["body"]
            if data["digest"] != _digest(body):
                raise ValueError("its digest is another one")
            if body["files"] != hashes(Path(name) for name in body["files"]):
                return None
            if body["given"] != _listing(key.given()):
                return None
            if body["variables"] != _values(body["variables"]):
                return None
            entry = replace(Entry.from_dict(key.name, body["data"]), cached=True)
            entry.cases()
            os.utime(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.notes.append(
                f"{key.name}: an earlier result was damaged, and is made anew ({error})"
            )
            return None
        return entry

    def put(self, key: Key, entry: Entry, before: float) -> None:
        """Keep a result.

        Args:
            before: when the run began, in seconds of the file system's clock: what was written after that may not
                be what was read.
        """
        if entry.exit_code not in _LASTING or (entry.error is not None and not entry.read):
            return
        files, given = hashes(map(Path, entry.read)), _listing(key.given())
        if any(_changed(Path(name)) >= before for name in files.keys() | given.keys()):
            return
        body: dict[str, Any] = {
            "files": files,
            "given": given,
            "variables": _values(entry.variables),
        }
        body["data"] = entry.to_dict()
        file = self._file(key)
        try:
            with staging(self.folder) as folder:
                text = json.dumps({"digest": _digest(body), "body": body})
                (folder / file.name).write_text(text, encoding="utf-8")
                publish(folder, self.folder)
        except NormfoldError as error:  # the result stands without it
            self.notes.append(f"results cannot be kept: {error.found}")

    def sweep(self) -> None:
        """Remove entries that were not used for a month."""
        for file in self.folder.glob("*.json"):
            try:
                if file.stat().st_mtime < time.time() - _KEPT:
                    file.unlink()
            except OSError:  # another run was faster
                continue

    def _file(self, key: Key) -> Path:
        return self.folder / f"{key.name}-{key.digest()[:24]}.json"


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by path; empty for what is not there."""
    return {str(path): file_hash(path) for path in paths}


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _changed(path: Path) -> float:
    """When a file was written last; never before anything where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _listing(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of files, and of all that is in folders."""
    found = {}
    for path in paths:
        inner = [path] if path.is_file() else sorted(path.rglob("*"))
        found.update(hashes(x for x in inner if x.is_file() and x.suffix != ".pyc"))
    return found


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _versions() -> list[str]:
    """Python, every installed package with its version, and normfold's own source."""
    found = [sys.version]
    for place in {*sys.path, sysconfig.get_paths()["purelib"]}:
        if place and Path(place).is_dir():
            found += sorted(str(path) for path in Path(place).glob("*.dist-info"))
    own = Path(__file__).parents[1]
    found += sorted(f"{path}:{file_hash(path)}" for path in own.rglob("*.py"))
    found += sorted(f"{path}:{file_hash(path)}" for path in (own / "passes").glob("*.py"))
    return found


def _variables() -> dict[str, str]:
    """Those that a result may depend on."""
    names = ("NORMFOLD_", "OMP_", "MKL_", "TORCH_", "PYTHONPATH", "PYTHONHASHSEED")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def _values(names: Iterable[str]) -> dict[str, str]:
    """What variables are set to, hashed: they may hold secrets."""
    return {name: _digest(os.environ.get(name)) for name in names}


def _machine() -> str:
    file = Path("/etc/machine-id")
    return f"{platform.node()} {file.read_text().strip() if file.is_file() else ''}"
