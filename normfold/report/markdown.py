"""Markdown for the summary of a CI job: a table, and details of what is not green."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.report.cases import Case, Entry

_WORDS = {"pass": "pass", "fail": "**fail**", "error": "**error**", "unproved": "unproved"}
_MOST = 20  # sites of a model


def markdown(entries: Sequence[Entry]) -> str:
    """The text of a file; short where everything passed."""
    lines = ["| model | verdict | what happened |", "|---|---|---|"]
    lines += [
        f"| {_cell(entry.name)} | {_WORDS[entry.state]} | {_cell(entry.outcome)} |"
        for entry in entries
    ]
    for entry in entries:
        bad = [case for case in entry.cases() if case.state != "pass"]
        notes = [item for item in entry.drift if item.state == "note"]
        if bad or notes:
            lines += ["", f"### {_cell(entry.name)}", "", *map(_item, bad)]
            lines += [f"- since the lock, {_cell(item.kind)}: {_cell(item.text)}" for item in notes]
        left = entry.left()
        if left and bad:
            lines += ["", "| left | kind | code | why |", "|---|---|---|---|"]
            lines += [
                f"| {_code(site['site'])} | {_cell(site['kind'])} | {_cell(site['code'])} "
                f"| {_cell(site.get('reason', ''))} |"
                for site in left[:_MOST]
            ]
            if len(left) > _MOST:
                lines += ["", f"{len(left) - _MOST} more sites are left."]
    return "\n".join(lines) + "\n"


def _item(case: Case) -> str:
    name = f" {_code(case.name)}" if case.name else ""
    first, *more = case.text.splitlines() or [""]
    detail = "".join(f"\n  {_cell(line)}" for line in more)
    place = f" ({_cell(case.line)})" if case.line else ""
    return f"- {_WORDS[case.state]} {_cell(case.kind)}{name}: {_cell(first)}{place}{detail}"


def _code(text: object) -> str:
    """A name as code, which no character of it ends."""
    return f"`{_cell(str(text).replace('`', chr(0x2019)))}`"


def _cell(text: object) -> str:
    """One line in a table, that no character of it ends."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
