"""Reports in every form that people and their tools open, by the suffix of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.report.cases import Entry
from normfold.report.html import html
from normfold.report.junit import junit
from normfold.report.markdown import markdown
from normfold.report.objects import SCHEMA
from normfold.report.sarif import sarif

Rendering = Callable[[Sequence[Entry]], str]

_TAKES = f"it takes `NAME.report.json` of a run, schema {SCHEMA}, or what `check --json` prints"


def _json(entries: Sequence[Entry]) -> str:
    return json.dumps({"models": [entry.to_dict() for entry in entries]}, indent=2) + "\n"


RENDERINGS: dict[str, Rendering] = {
    ".junit.xml": junit,
    ".sarif": sarif,
    ".md": markdown,
    ".html": html,
    ".json": _json,
}


def rendering(path: Path) -> Rendering:
    """What writes a file of this name.

    Raises:
        UsageError: nothing writes such files.
    """
    for suffix, found in RENDERINGS.items():
        if path.name.endswith(suffix):
            return found
    raise UsageError(
        "a report is not written in this form",
        where=str(path),
        hint=f"its name ends with {', '.join(RENDERINGS)}",
    )


def render_file(path: Path, render: Rendering) -> str:
    """A report that was read back, in another form.

    Raises:
        UsageError: as `read`, and where what is rendered is not in it.
    """
    entries = read(path)
    try:
        return render(entries)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError("the report is damaged", where=str(path), found=repr(error)) from error


def _is_report(item: Any) -> bool:
    """True for what a run writes, and for the error that it ended with."""
    if not isinstance(item, dict):
        return False
    error = item.get("error")
    if error is not None:
        return isinstance(error, dict) and bool(error.get("what"))
    return item.get("schema") == SCHEMA and "checks" in item and "outcome" in item


def read(path: Path) -> list[Entry]:
    """The models of a report: that of a run, the error that it printed, or those of `check`.

    Raises:
        UsageError: there is no such file, or it is not a report that this version reads.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "no JSON" if isinstance(error, ValueError) else str(error)[:200]
        raise UsageError(
            "the report cannot be read", where=str(path), found=why, hint=_TAKES
        ) from error
    name = path.name.removesuffix(".json").removesuffix(".report")
    several = isinstance(data, dict) and isinstance(data.get("models"), list)
    found = (data["models"] or [None]) if several else [data]
    for item in found:
        if not _is_report(item):
            raise UsageError(
                "this is not a report that this version of normfold reads",
                where=str(path),
                found=f"schema {item.get('schema') if isinstance(item, dict) else type(item).__name__}",
                hint=_TAKES,
            )
    try:
        entries = [Entry.from_dict(name, item) for item in found]
        for entry in entries:
            entry.cases()
            entry.left()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError("the report is damaged", where=str(path), found=repr(error)) from error
    return entries
