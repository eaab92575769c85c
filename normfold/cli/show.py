"""Where output goes: data to stdout, everything else to stderr, a moving line only on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.report import Report


def console() -> Console:
    """Console on stdout; wide enough that a pipe gets whole lines."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step and its seconds on stderr; silent when stderr is no terminal.

    A line that ends in ``42%`` moves a bar.
    """
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # the stream of now: it goes on moving while a capture keeps torch's chatter off stderr
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def say(line: str) -> None:
            share = re.search(r" (\d+)%$", line)
            total, done = (100, int(share[1])) if share else (None, 0)
            bar.update(task, description=line[:100], total=total, completed=done)

        yield say


def emit(report: Report, as_json: bool, verbose: bool) -> None:
    """Print a report as text or JSON."""
    if as_json:
        typer.echo(report.to_json())
        return
    from normfold.report.text import print_report

    print_report(report, console(), verbose)


def warn_pickle(trusted: bool) -> None:
    """Say what --trust-pickle means, every time."""
    if trusted:
        print("warning: --trust-pickle runs whatever code the file contains", file=sys.stderr)
