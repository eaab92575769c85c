"""The models of `check`, each in a process of its own; what an earlier run found and still holds is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from normfold.cli.cache import Cache, Key, file_hash
from normfold.errors import EnvironmentMissing
from normfold.report.cases import Entry

# -P: a folder may hold a `json.py` of its own
_START = "from normfold.cli.reads import main; main({parent})"
_CODES = (1, 2, 3, 4, 70)


@dataclass(frozen=True)
class Run:
    """One model of a configuration.

    Attributes:
        command: the preset of a job: `convert`, `distill` or `quantize`.
        words: the model and the options, as on a command line.
        allow_unproved: what cannot be judged here is no failure.
        times: it is timed while it is made, and so runs alone.
    """

    name: str
    command: str
    words: tuple[str, ...]
    allow_unproved: bool
    times: bool

    def code(self, entry: Entry) -> int:
        """The exit code of what became of it: that of its run, 1 behind its lock, or 3 for what was not judged."""
        if entry.state == "unproved":
            return 0 if self.allow_unproved else 3
        return entry.exit_code or int(entry.state == "fail")


@dataclass
class Runner:
    """Where and how models run.

    Attributes:
        file: the configuration; they run in its folder.
        output: files are kept here, in a folder for each model; without it they go again.
        named: the configuration was named, and not only found.
        settings: options of the configuration that hold for all, as plain data.
        cache: where earlier results are; `reuse` says whether they count.
        say: is told of each model when it begins, without an entry, and when it is done.
    """

    file: Path
    output: Path | None
    named: bool
    settings: Any
    jobs: int
    cache: Cache
    reuse: bool
    say: Callable[[Run, Entry | None], None]
    _living: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, found: Sequence[Run]) -> list[Entry]:
        """Do all of them; what is timed runs behind the others, alone."""
        entries: dict[str, Entry] = {}
        # the prefix of folders that the next run clears away if this one is killed
        with tempfile.TemporaryDirectory(prefix=f"normfold-{os.getpid()}-") as temporary:
            place = Path(temporary) if self.output is None else self.output.absolute()

            def one(run: Run) -> None:
                if not self._stopped.is_set():
                    self.say(run, None)
                    entries[run.name] = entry = self._one(run, place)
                    if not self._stopped.is_set():  # else it is not the model's doing
                        self.say(run, entry)

            try:
                with ThreadPoolExecutor(self.jobs) as pool:
                    try:
                        list(pool.map(one, (run for run in found if not run.times)))
                    except BaseException:
                        self._stop()  # the pool waits for its threads, and they for the processes
                        raise
                for run in found:
                    if run.times:
                        one(run)
            except BaseException:
                self._stop()
                for process in list(self._living):
                    process.wait()
                raise
        return [entries[run.name] for run in found]

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._living):
            process.terminate()

    def _one(self, run: Run, place: Path) -> Entry:
        words, output = (run.command, *run.words), "" if self.output is None else str(place)
        key = Key(run.name, words, self.settings, self.file.parent, run.times, output)
        entry = self.cache.get(key) if self.reuse else None
        if entry is not None and (self.output is None or _are_there(entry, place / run.name)):
            return entry
        before = time.time()
        entry = self._new(run, place)
        with self._writing:
            self.cache.put(key, entry, before)
        return entry

    def _new(self, run: Run, place: Path) -> Entry:
        start, own = _START.format(parent=os.getpid()), f"{place / run.name}/"
        words = [sys.executable, "-P", "-c", start, run.command, *run.words, "--json"]
        words += ["-o", str(place / run.name)]
        words += ["--config", str(self.file.absolute())] if self.named else []
        environment = dict(os.environ)
        if self.jobs > 1 and not run.times:  # they share the processors
            environment.setdefault(
                "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs))
            )
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=self.file.parent,
                    env=environment,
                )
            except OSError as error:
                raise EnvironmentMissing(
                    "a process of normfold's own cannot be started", found=str(error)
                ) from error
            self._living.add(process)
            code = process.wait()
            self._living.discard(process)
            out.seek(0)
            err.seek(0)
            text = out.read()
            if self.output is None:  # where they were for a while says nothing
                for written in (json.dumps(own)[1:-1].encode(), os.fsencode(own)):
                    text = text.replace(written, b"")
                text = text.replace(b'"outcome": "wrote ', b'"outcome": "')
            entry = _entry(run.name, code, text, err.read())
        # what it wrote itself has no place any more, or lies there; what it read of the configuration is known
        known = str(self.file.absolute())
        read = (x for x in entry.read if Path(x).is_absolute() and not x.startswith(own))
        return replace(entry, read=tuple(x for x in read if x != known))


def _are_there(entry: Entry, folder: Path) -> bool:
    """Whether the files of an earlier run lie in a folder as it wrote them."""
    return all(
        file_hash(folder / Path(item["path"]).name) == item["sha256"]
        for item in entry.data.get("artefacts", ())
        if item["written"]
    )


def _entry(name: str, code: int, out: bytes, err: bytes) -> Entry:
    """What a run printed: its report, or an error; else what can be said without either."""
    try:
        data = json.loads(out)
        if isinstance(data, dict) and data.get("exit_code") == code:
            return Entry.from_dict(name, data)
    except ValueError:
        pass
    last = (err.decode("utf-8", "replace").strip().splitlines() or ["nothing was printed"])[-1]
    what = f"the run ended with status {code}, without a report"
    error = {"what": what, "where": None, "found": last[:500], "hint": None}
    known = code if code in _CODES else 70
    return Entry(name, {"ok": False, "exit_code": known, "error": error})
