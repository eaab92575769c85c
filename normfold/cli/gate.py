"""`normfold check` from options to exit code: run, compare with the lock, report."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import typer

from normfold.cli import check as configured
from normfold.cli import supervise
from normfold.cli.cache import Cache, default_folder
from normfold.cli.local import Checking
from normfold.cli.locked import Lock
from normfold.cli.runs import Run, Runner
from normfold.cli.settings import configuration
from normfold.errors import UsageError
from normfold.files import require_writable, sweep, write_text
from normfold.report.cases import Entry
from normfold.report.markdown import markdown
from normfold.report.rendering import rendering


def check(asked: Checking, as_json: bool) -> int:
    """Every model of the configuration; the exit code is the worst of all.

    Raises:
        UsageError: a wrong configuration or lock, an unknown model, a place that cannot be written to.
    """
    config = configuration()
    file, settings, every = configured.runs(config)
    found = _chosen(every, asked.only)
    lock = Lock(file, settings, asked.update and not asked.only)  # else the others would be lost
    reports = [Path(name) for name in asked.reports]
    for report in reports:
        rendering(report)
        require_writable(report.parent)
        if report.is_dir():
            raise UsageError(
                "a report cannot be written in the place of a folder", where=str(report)
            )
    if asked.keep is not None:
        require_writable(asked.keep)
    cache = Cache(asked.cache or default_folder())
    supervise.sweep()
    for folder in (cache.folder, lock.folder, *(report.parent for report in reports)):
        sweep(folder)
    cache.sweep()

    jobs = asked.jobs or max(1, (os.cpu_count() or 1) // 2)
    named = config is not None
    judged: dict[str, Entry] = {}
    with shown() as said:

        def say(run: Run, entry: Entry | None) -> None:
            if entry is None:
                said(run.name, "")
                return
            judged[run.name] = entry if asked.update else lock.compared(run, entry)
            said(run.name, f"{judged[run.name].state}{', as before' if entry.cached else ''}")

        runner = Runner(file, asked.keep, named, settings, jobs, cache, not asked.fresh, say)
        entries = runner.execute(found)
    notes = [*cache.notes]
    if asked.update:
        bad = lock.write(found, entries, [run.name for run in every])
        notes += [f"{name} is not locked: it is not sound" for name in bad]
        notes.append(f"wrote {os.path.relpath(lock.path)}")
    else:
        unlocked = [run.name for run in found if run.name not in lock.models]
        gone = sorted(lock.models.keys() - {run.name for run in every})
        if not lock.found:
            notes.append(
                f"there is no {lock.path.name}: nothing is compared with it (`normfold check --update`)"
            )
        elif unlocked:
            notes.append(f"not in the lock: {', '.join(unlocked)} (`normfold check --update`)")
        if gone:
            notes.append(f"in the lock, and not in {file.name} any more: {', '.join(gone)}")
        entries = [judged[run.name] for run in found]
    entries = [replace(x, place=configured.place_of(file, x.name)) for x in entries]
    for report in reports:
        write_text(report, rendering(report)(entries))
    _print(entries, as_json)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    code = configured.worst([run.code(entry) for run, entry in zip(found, entries, strict=True)])
    counts = ", ".join(f"{n} {state}" for state, n in Counter(x.state for x in entries).items())
    print(f"{'NOT passed' if code else 'passed'}: {counts}", file=sys.stderr)
    return code


@contextmanager
def shown() -> Iterator[Callable[[str, str], None]]:
    """Says what became of each model; on a terminal those that run have a line with their seconds."""
    if not sys.stderr.isatty():

        def say(name: str, state: str) -> None:
            if state:
                print(f"{name}: {state}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def move(name: str, state: str) -> None:
            if not state:
                tasks[name] = bar.add_task(name, total=None)
                return
            bar.remove_task(tasks.pop(name))
            bar.console.print(f"{name}: {state}", markup=False, highlight=False)

        yield move


def _chosen(every: list[Run], names: tuple[str, ...]) -> list[Run]:
    known = [run.name for run in every]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no model `{name}`", hint=f"models: {', '.join(known)}")
    return [run for run in every if not names or run.name in names]


def _print(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"models": [entry.to_dict() for entry in entries]}, indent=2))
        return
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in configured.workflow_commands(entries):
            typer.echo(line)
    typer.echo(markdown(entries), nl=False)
