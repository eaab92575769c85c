"""Tables and lines on a terminal, with rich. Readable without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normfold.errors import printable


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table; empty cells for None."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    return grid


def print_line(console: Console, text: str) -> None:
    """One line as it is: paths and messages may hold brackets and colons that rich would read."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
