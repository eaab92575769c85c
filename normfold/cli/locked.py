"""The lock beside a configuration: what of it is about this machine's folders and the repository's history."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normfold.cli.cache import file_hash
from normfold.cli.history import edits
from normfold.cli.runs import Run
from normfold.errors import UsageError
from normfold.files import write_text
from normfold.report import lock
from normfold.report.cases import Drift, Entry
from normfold.report.machine import processor


class Lock:
    """The file, and what it says of each model.

    Attributes:
        path: `normfold.lock` for `normfold.toml` and pyproject.toml, else the configuration's name with `.lock`.
        models: as plain data; empty where there is no file.
        found: there is a file.
    """

    def __init__(
        self, config: Path, settings: Mapping[str, Any] | None = None, anew: bool = False
    ) -> None:
        """Read it; what cannot be read is empty where it is to be written ``anew``.

        Args:
            settings: options of the configuration that hold for all models, as plain data.

        Raises:
            UsageError: it cannot be read, or is no file.
        """
        named = config.name == "pyproject.toml"
        self.path = config.with_name("normfold.lock") if named else config.with_suffix(".lock")
        self.folder = config.parent.absolute()
        self._settings = settings or {}
        self.found = self.path.is_file()
        if not self.found and (self.path.exists() or self.path.is_symlink()):
            raise UsageError(
                "the lock is no file",
                where=str(self.path),
                found="a folder" if self.path.is_dir() else "a link to what is not there",
            )
        try:
            self.models = lock.read(self.path)
        except UsageError:
            if not anew:
                raise
            self.models = {}

    def compared(self, run: Run, entry: Entry) -> Entry:
        """A result with its differences from the lock."""
        old = self.models.get(run.name)
        if old is None or entry.error is not None:
            return entry
        drift = lock.compare(old, self.record(run, entry), edits(self.folder, self.path))
        return replace(entry, drift=tuple(self._placed(item) for item in drift))

    def record(self, run: Run, entry: Entry) -> dict[str, Any]:
        """What the lock says of a result."""
        given = [self.folder / run.words[0], *map(Path, entry.read)]
        marks = {name: _mark(os.environ.get(name)) for name in entry.variables}
        files = self._hashes(given)
        made = lock.record(lock.Run(entry, self._words(run), files, processor(), marks))
        for site in made["sites"].values():
            for key in ("line", "at"):
                if site.get(key):
                    site[key] = self._relative(site[key])
        return made

    def write(
        self, runs: Sequence[Run], entries: Sequence[Entry], known: Sequence[str]
    ) -> list[str]:
        """Write what is known now.

        Args:
            known: the models of the configuration: others go.

        Returns:
            The models that are not locked because they are not sound.
        """
        models = {name: item for name, item in self.models.items() if name in known}
        bad = []
        for run, entry in zip(runs, entries, strict=True):
            if entry.state in ("pass", "unproved"):
                models[run.name] = self.record(run, entry)
            else:
                bad.append(run.name)
        write_text(self.path, lock.text(models))
        return bad

    def _words(self, run: Run) -> list[str]:
        """The command, its model and options, also those that hold for all models or are set by variables."""
        own = self._settings.get(run.command, {})
        plain = {key: x for key, x in self._settings.items() if not isinstance(x, dict)}
        common = [f"{key} = {json.dumps(x, default=str)}" for key, x in {**plain, **own}.items()]
        prefix = f"NORMFOLD_{run.command.upper()}_"  # others are of a machine, and no option of the model
        variables = [f"{x}={os.environ[x]}" for x in sorted(os.environ) if x.startswith(prefix)]
        return [run.command, *run.words, *common, *variables]

    def _hashes(self, paths: Sequence[Path]) -> Mapping[str, str]:
        """Of files, and of folders as a whole, by their path from here."""
        folders = [path for path in paths if path.is_dir()]
        found = {}
        for path in paths:
            if path.is_dir():
                inner = sorted(x for x in path.rglob("*") if x.is_file() and x.suffix != ".pyc")
                total = hashlib.sha256()
                for file in inner:
                    total.update(f"{file.relative_to(path)}\0{file_hash(file)}\n".encode())
                found[f"{self._name(path)}/"] = total.hexdigest()
            elif path.is_file() and not any(folder in path.parents for folder in folders):
                found[self._name(path)] = file_hash(path)
        return found

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _relative(self, line: str) -> str:
        for folder in {self.folder, self.folder.resolve()}:
            line = line.removeprefix(f"{folder}/")
        return line

    def _placed(self, drift: Drift) -> Drift:
        """With its line as it is seen from the current folder."""
        if not drift.line or Path(drift.line).is_absolute():
            return drift
        here = Path(os.path.relpath(self.folder)).as_posix()
        return drift if here == "." else replace(drift, line=f"{here}/{drift.line}")


def _mark(value: str | None) -> str:
    """Of a variable's value, too short to find it by: it may be a secret."""
    return "unset" if value is None else hashlib.sha256(os.fsencode(value)).hexdigest()[:4]
