"""README and docs/ as data: their commands, blocks, links and tables, and the tables that the code makes.

python -m tests.pages        # writes the latter
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from normfold.cli import app
from normfold.cli.local import Bench, Comparison, Fault, Inspection, Printing
from normfold.cli.table import TABLE
from normfold.job import GROUPS, Option, options_of
from normfold.report.reasons import Caution, Reason
from normfold.target import TARGETS

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", *DOCS]
LINKED = [
    *PAGES,
    "CHANGELOG.md",
    "benchmarks/README.md",
    "examples/models/README.md",
    "examples/plugin/README.md",
    "examples/results/README.md",
    "examples/results/integers.md",
]
TEXT = {page: (ROOT / page).read_text() for page in LINKED}
README = TEXT["README.md"]
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:\$ |.* -m )?(normfold [a-z].*)")


# -- reading a page ----------------------------------------------------------------------------------


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every fence."""
    return [(part[1], part[2]) for part in _FENCE.finditer(TEXT[page])]


def python_blocks(page: str) -> list[str]:
    """Behind as many empty lines as there are in front of them, so that errors name the right one."""
    found = [part for part in _FENCE.finditer(TEXT[page]) if part[1] == "python"]
    return ["\n" * TEXT[page].count("\n", 0, part.start(2)) + part[2] for part in found]


def indented(text: str) -> list[str]:
    return [line[4:] for line in _FENCE.sub("", text).splitlines() if line.startswith("    ")]


def spans(text: str) -> Iterator[str]:
    """Code of a page outside fences: indented lines, and what is in backticks; of fences the lines of a shell."""
    yield from indented(text)
    for part in _FENCE.finditer(text):
        if part[1] == "sh":
            yield from (line.partition(" >> ")[0] for line in part[2].splitlines())
    prose = [line for line in _FENCE.sub("", text).splitlines() if not line.startswith("    ")]
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", "\n".join(prose)))


def command_lines(text: str) -> list[list[str]]:
    """The words of every `normfold COMMAND ...` of a page, without `normfold`."""
    found = filter(None, map(_COMMAND.fullmatch, spans(text)))
    return [shlex.split(match[1], comments=True)[1:] for match in found]


def options(command: str | None) -> set[str]:
    """Long and short options of a command, of all for None."""
    chosen = COMMANDS.values() if command is None else [COMMANDS[command]]
    params = [param for item in chosen for param in item.params]
    found = {name for param in params for name in (*param.opts, *param.secondary_opts)}
    return found | {"--help", "-h", "--version"}


def used_options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if re.match(r"--[a-z]|-[a-z]$", word)}


def links(page: str) -> list[tuple[str, str]]:
    """Targets of links to files, relative to the page, and their anchors."""
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", TEXT[page])
    parts = [target.partition("#") for target in targets if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in parts]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table(page: str, *header: str) -> list[list[str]]:
    """Rows of the page's table with this header."""
    rows, found = [], False
    for line in TEXT[page].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if cells[: len(header)] == list(header):
            found = True
        elif found and not line.startswith("|"):
            break
        elif found and not set(line) <= set("|- "):
            rows.append(cells)
    return rows


# -- tables that are made from the code --------------------------------------------------------------


def markdown(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell for cell in line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    return f"`{text}`"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def targets_table() -> str:
    rows = [
        (
            code(row.name),
            ", ".join(map(code, row.formats)),
            row.description,
            row.wants,
            ", ".join(map(code, row.schemes)),
            "onnxruntime; the engine by itself" if row.stands_in else row.runtime,
        )
        for row in TARGETS.values()
    ]
    header = ("target", "formats", "runs", "what the file looks like", "few bits", "judged by")
    return markdown(header, rows)


def commands_table() -> str:
    rows = [(code(item.name), escaped(item.help)) for item in TABLE]
    return markdown(("command", "what it does"), rows)


_VALUES = {"int": "N", "float": "X", "path": "PATH"}


def option_row(item: Option) -> tuple[str, ...]:
    flags = [*item.flags, *([f"--no-{item.key}"] if item.kind == "bool" and item.default else [])]
    value = item.declared.metavar or "|".join(item.choices)
    value = value or " ".join([_VALUES.get(item.kind, "")] * item.count)
    names = ", ".join(map(code, flags)) + (f" {escaped(value)}" if value else "")
    default = item.declared.default_text
    if not default and item.kind != "bool" and item.default not in (None, (), ""):
        default = str(item.default[0] if isinstance(item.default, tuple) else item.default)
    if not default and item.kind == "bool" and item.default:
        default = "on"
    return names, escaped(item.declared.help), escaped(default), code(item.keyword)


def options_tables() -> str:
    groups: dict[str, list[tuple[str, ...]]] = {}
    for owner in (*GROUPS, Bench, Comparison, Fault, Inspection, Printing):
        for item in options_of(owner):
            row = option_row(item)
            shown = row if owner in GROUPS else (*row[:3], "")
            groups.setdefault(item.group or "Other options", []).append(shown)
    groups["Measuring (normfold bench)"] = groups.pop(Bench.GROUP)
    groups["Other options"] = groups.pop("Other options")
    header = ("option", "what it does", "default", "keyword")
    parts = [f"### {title}\n\n{markdown(header, rows)}" for title, rows in groups.items()]
    return "\n".join(parts)


def reasons_table() -> str:
    places = {row[0]: row[-1] for row in table("docs/codes.md", "code", "name", "meaning")}
    rows = [
        (
            reason.code,
            code(reason.slug),
            escaped(reason.summary),
            escaped(reason.remedy),
            places.get(reason.code, ""),
        )
        for reason in Reason
    ]
    return markdown(("code", "name", "meaning", "what helps", "typical place"), rows)


def cautions_table() -> str:
    rows = [
        (item.code, code(item.slug), escaped(item.summary), escaped(item.remedy))
        for item in Caution
    ]
    return markdown(("code", "name", "meaning", "what helps"), rows)


SCHEMA: dict[str, Any] = json.loads((ROOT / "normfold/report/schema.json").read_text())


def _shape(part: dict[str, Any]) -> str:
    """What a value of the report is, in words."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "const" in part:
        return code(json.dumps(part["const"]))
    if "enum" in part:
        return ", ".join(code(json.dumps(value)) for value in part["enum"])
    if choices := part.get("anyOf") or part.get("oneOf"):
        return " or ".join(map(_shape, choices))
    if isinstance(part.get("type"), list):
        return " or ".join(part["type"])
    if part.get("type") == "array":
        if "prefixItems" in part:
            return f"({', '.join(map(_shape, part['prefixItems']))})"
        return f"list of {_shape(part['items'])}" if "items" in part else "list"
    values = part.get("additionalProperties")
    if isinstance(values, dict):
        return f"names, each with {_shape(values)}"
    return str(part.get("type", "any"))


def _inner(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects that are described in place, and how they are reached."""
    for choice in (part, *part.get("anyOf", ()), *part.get("oneOf", ())):
        if "properties" in choice:
            yield "", choice
        elif isinstance(choice.get("items"), dict):
            yield from ((f"[]{end}", found) for end, found in _inner(choice["items"]))


def _fields(part: dict[str, Any], start: str = "") -> Iterator[tuple[str, str, str]]:
    for name, value in part["properties"].items():
        optional = "" if name in part.get("required", ()) else "; may be missing"
        text = escaped(value.get("description", ""))
        yield code(start + name), escaped(_shape(value)) + optional, text
        for end, found in _inner(value):
            yield from _fields(found, f"{start}{name}{end}.")


def schema_tables() -> str:
    header = ("field", "value", "meaning")
    parts = ["## The report", SCHEMA["description"], markdown(header, list(_fields(SCHEMA)))]
    for name, part in SCHEMA["$defs"].items():
        parts += [f"## {name}", part.get("description", "")]
        parts.append(
            markdown(header, list(_fields(part))) if "properties" in part else _shape(part)
        )
    return "\n\n".join(part.strip() for part in parts if part)


TABLES: dict[str, Callable[[], str]] = {
    "targets": targets_table,
    "commands": commands_table,
    "options": options_tables,
    "reasons": reasons_table,
    "cautions": cautions_table,
    "schema": schema_tables,
}
MARKED = re.compile(r"(<!-- (\w+): written by [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """The page with its tables as the code has them."""
    return MARKED.sub(lambda part: f"{part[1]}\n{TABLES[part[2]]().strip()}\n\n{part[3]}", text)


if __name__ == "__main__":
    for _page in DOCS:
        (ROOT / _page).write_text(written(TEXT[_page]))
