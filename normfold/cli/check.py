"""`normfold check`: every model of a configuration, each in a process of its own, and one exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.cli import settings
from normfold.errors import UsageError
from normfold.job import COMMANDS, GROUPS, Option, options_of
from normfold.report.cases import Entry

_WORST = (70, 2, 4, 1, 3, 0)
_OWN = ("network", "command", "allow-unproved")  # keys of a model that are not options


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
        """The exit code of what became of it: that of its run, or 3 for what was not judged."""
        if entry.state == "unproved":
            return 0 if self.allow_unproved else 3
        return entry.exit_code


def runs(config: Path | None) -> tuple[Path, list[Run]]:
    """The folder that paths of a configuration are relative to, and its models.

    Raises:
        UsageError: a wrong configuration, or one that was only found and would run code.
    """
    file, table = settings.models(config)
    return file.parent, [
        _run(str(name), values, file.name, config is not None) for name, values in table.items()
    ]


def _run(name: str, values: Mapping[str, Any], file: str, named: bool) -> Run:
    command = values.get("command", "convert")
    if command not in COMMANDS:
        raise UsageError(
            f"`{file}` has a wrong value for `models.{name}.command`",
            found=repr(command),
            hint=f"one of: {', '.join(COMMANDS)}",
        )
    if not name or not all(part.isalnum() or part in "-_." for part in name) or name[0] == ".":
        raise UsageError(
            f"`{file}` has a model that no file can be named after", found=f"models.{name}"
        )
    left_out = COMMANDS[command][1]
    options = [item for group in GROUPS if group not in left_out for item in options_of(group)]
    known = {flag.removeprefix("--"): item for item in options for flag in item.flags}
    model = values.get("network")
    if not isinstance(model, str) or not model or model.startswith("-"):
        raise UsageError(f"`{file}` does not say which model `models.{name}` is", found=repr(model))
    if not named and _runs_code(model):
        raise _may_not(file, f"models.{name}.network")
    words = [model]
    for key, value in values.items():
        if key in _OWN:
            continue
        item = known.get(key)
        if item is None or item.name == "output":
            where = "`normfold check` says where files go"
            raise UsageError(
                f"`{file}` has an unknown key `models.{name}.{key}`",
                hint=where if item is not None else f"`normfold {command} --help`",
            )
        plain = settings.Option(item.keyword, item.many or item.count > 1, item.named)
        if not named and not settings.may_be_found(key, value, plain):
            raise _may_not(file, f"models.{name}.{key}")
        words += _words(item, value, f"models.{name}.{key}", file)
    asked = {known[key].name for key in values if key not in _OWN}
    timed = command == "quantize" or bool(asked & {"scheme", "keep_if_faster"})
    allow = values.get("allow-unproved", False)
    if not isinstance(allow, bool):
        raise UsageError(
            f"`{file}` has a wrong value for `models.{name}.allow-unproved`", found=repr(allow)
        )
    return Run(name, str(command), tuple(words), allow, timed)


def _runs_code(model: str) -> bool:
    """Whether a model is a factory, `pkg.mod:fn`, and not a file or a name of timm's."""
    return ":" in model and not model.startswith("timm:") and not Path(model).exists()


def _may_not(file: str, key: str) -> UsageError:
    return UsageError(
        f"`{file}` sets `{key}`, which a configuration that was only found may not set",
        hint=f"if you know this file: `normfold check --config {file}`",
    )


def _words(item: Option, value: Any, key: str, file: str) -> list[str]:
    """An option as words of a command line."""
    flag = item.flags[0]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, (str, int, float)) for one in values):
        raise UsageError(f"`{file}` has a wrong value for `{key}`", found=repr(value))
    if item.kind == "bool":
        if not isinstance(value, bool):
            raise UsageError(
                f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not a bool"
            )
        return [flag if value else f"--no-{item.key}"]
    if item.count > 1:
        return [flag, *map(str, values)]
    if len(values) > 1 and not item.many:
        raise UsageError(
            f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not one value"
        )
    return [f"{flag}={one}" for one in values]


def execute(
    found: Sequence[Run],
    folder: Path,
    output: Path | None,
    config: Path | None,
    jobs: int,
    say: Callable[[Run, Entry], None],
) -> list[Entry]:
    """Do all of them, and say so of each; what is timed runs behind the others, alone.

    Args:
        folder: they run here.
        output: files are kept here, in a folder for each model; without it they go again.
    """
    entries: dict[str, Entry] = {}
    living: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="normfold-check-") as temporary:
        place = temporary if output is None else str(output.absolute())

        def one(run: Run) -> None:
            if not stopped.is_set():
                entry = _one(run, folder, Path(place), config, living, jobs)
                if output is None:  # where they were for a while says nothing
                    entry = _without(entry, f"{place}/{run.name}/")
                entries[run.name] = entry
                say(run, entry)

        def stop() -> None:
            stopped.set()
            for process in list(living):
                process.terminate()

        try:
            with ThreadPoolExecutor(jobs) as pool:
                try:
                    list(pool.map(one, (run for run in found if not run.times)))
                except BaseException:
                    stop()  # the pool waits for its threads, and they for the processes
                    raise
            for run in found:
                if run.times:
                    one(run)
        except BaseException:
            stop()
            for process in list(living):
                process.wait()
            raise
    return [entries[run.name] for run in found]


def _one(
    run: Run,
    folder: Path,
    place: Path,
    config: Path | None,
    living: set[subprocess.Popen[bytes]],
    jobs: int,
) -> Entry:
    # -P: a folder may hold a `json.py` of its own
    words = [sys.executable, "-P", "-m", "normfold", run.command, *run.words, "--json"]
    words += ["-o", str(place / run.name)]
    words += [] if config is None else ["--config", str(config.absolute())]
    environment = dict(os.environ)
    if jobs > 1 and not run.times:  # they share the processors
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=environment
        )
        living.add(process)
        code = process.wait()
        living.discard(process)
        out.seek(0)
        err.seek(0)
        return _entry(run.name, code, out.read(), err.read())


def _entry(name: str, code: int, out: bytes, err: bytes) -> Entry:
    """What a run printed: its report, or an error; else what can be said without either."""
    try:
        data = json.loads(out)
        if isinstance(data, dict) and data.get("exit_code") == code:
            return Entry(name, data)
    except ValueError:
        pass
    last = (err.decode("utf-8", "replace").strip().splitlines() or ["nothing was printed"])[-1]
    what = f"the run ended with status {code}, without a report"
    known = code if code in _WORST and code else 70
    error = {"what": what, "where": None, "found": last[:500], "hint": None}
    return Entry(name, {"ok": False, "exit_code": known, "error": error})


def _without(entry: Entry, folder: str) -> Entry:
    """An entry whose last line does not name a folder that is gone."""
    text = entry.outcome.replace(f"wrote {folder}", "").replace(folder, "")
    return entry if entry.error is not None else Entry(entry.name, {**entry.data, "outcome": text})


def worst(codes: Sequence[int]) -> int:
    """The exit code that counts."""
    return min(codes, key=lambda code: _WORST.index(code) if code in _WORST else 0, default=0)


def workflow_commands(entries: Sequence[Entry]) -> list[str]:
    """Commands of GitHub Actions that show what failed beside the code."""
    lines = []
    for entry in entries:
        for case in entry.cases():
            if case.state != "pass":
                kind = "warning" if case.state == "unproved" else "error"
                title = _escaped(f"{entry.name}: {case.kind} {case.name}".strip(), ":,")
                lines.append(f"::{kind} title={title}::{_escaped(case.text)}")
    return lines


def _escaped(text: str, also: str = "") -> str:
    for character in f"%\r\n{also}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
