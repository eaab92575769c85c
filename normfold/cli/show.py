"""Where output goes: data to stdout, everything else to stderr, a moving line only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from normfold.cli import reads
from normfold.progress import Listener, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.report import Report

_last = Progress("starting")


def last_progress() -> Progress:
    """What the run was doing when it was last heard of."""
    return _last


def _remember(event: Progress) -> None:
    global _last
    _last = event
    from normfold.cli.supervise import note_stage

    note_stage(f"{event.stage}{f', {event.text}' if event.text else ''}")


def console() -> Console:
    """Console on stdout; COLUMNS sets its width, and a pipe gets whole lines."""
    from rich.console import Console

    narrow = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console() if narrow else Console(width=200)


@contextmanager
def progress() -> Iterator[Listener]:
    """A spinner with the current stage and its seconds on stderr; silent when stderr is not a terminal."""
    if not sys.stderr.isatty():

        def remember(event: Progress) -> None:
            _remember(event)

        yield remember
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # the stream of now: it goes on moving while a capture keeps torch's chatter off stderr
    with Bar(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("loading torch", total=None)

        def show(event: Progress) -> None:
            _remember(event)
            text = f"{event.stage}{f', {event.text}' if event.text else ''}"
            bar.update(task, description=text[:100], total=event.total, completed=event.done)

        yield show


def emit(report: Report, as_json: bool, verbose: bool) -> None:
    """Print a report as text or JSON."""
    from normfold.report import json_text

    if as_json:
        read = reads.listed()
        more = {} if read is None else {"read": read, "variables": reads.variables()}
        typer.echo(json_text({**report.to_dict(), **more}))
        return
    from normfold.report.text import print_report

    print_report(report, console(), verbose)


def warn_pickle(given: dict[str, Any]) -> None:
    """Say what --trust-pickle means, every time."""
    if given.get("trust_pickle"):
        print("warning: --trust-pickle runs whatever code the file contains", file=sys.stderr)
