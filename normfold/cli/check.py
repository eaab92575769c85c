"""`normfold check`: every model of a configuration, each in a process of its own, and one exit code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normfold.cli import settings
from normfold.cli.runs import Run
from normfold.errors import UsageError
from normfold.job import COMMANDS, GROUPS, Option, options_of
from normfold.report.cases import Entry
from normfold.report.places import place, root

_LONGEST, _PATH = 100, 4096  # letters of a model's name, which files are named after, and of a path
_WORST = (70, 2, 4, 1, 3, 0)
_OWN = ("network", "command", "allow-unproved")  # keys of a model that are not options


def runs(config: Path | None) -> tuple[Path, Any, list[Run]]:
    """The file of a configuration, what it sets for all models, and the models.

    Raises:
        UsageError: a wrong configuration, or one that was only found and would run code.
    """
    file, every, table = settings.models(config)
    return (
        file,
        every,
        [_run(str(name), values, file.name, config is not None) for name, values in table.items()],
    )


def _run(name: str, values: Mapping[str, Any], file: str, named: bool) -> Run:
    command = values.get("command", "convert")
    if not isinstance(command, str) or command not in COMMANDS:
        raise UsageError(
            f"`{file}` has a wrong value for `models.{name}.command`",
            found=repr(command),
            hint=f"one of: {', '.join(COMMANDS)}",
        )
    plain_name = all(part.isalnum() or part in "-_." for part in name)
    if not plain_name or not 0 < len(name) <= _LONGEST or name[0] == ".":
        raise UsageError(
            f"`{file}` has a model that no file can be named after",
            found=repr(name),
            hint=f"up to {_LONGEST} letters, digits, `-`, `_` and `.`, as in `[models.resnet-20]`",
        )
    left_out = COMMANDS[command][1]
    options = [item for group in GROUPS if group not in left_out for item in options_of(group)]
    known = {flag.removeprefix("--"): item for item in options for flag in item.flags}
    model = values.get("network")
    if not isinstance(model, str) or not model or model.startswith("-"):
        raise UsageError(
            f"`{file}` does not say which model `models.{name}` is",
            found=None if model is None else repr(model),
            hint='write `network = "model.pt"`, or what else `normfold convert` takes as MODEL',
        )
    if "\0" in model or len(model) > _PATH:
        raise UsageError(
            f"`{file}` has a wrong value for `models.{name}.network`", found=ascii(model)[:80]
        )
    if not named and _runs_code(model):
        raise _may_not(file, f"models.{name}.network")
    words = [model]
    for key, value in values.items():
        if key in _OWN:
            continue
        item = known.get(key)
        if item is None or item.name == "output":
            close = difflib.get_close_matches(key, [*_OWN, *known], 1)
            meant = f"did you mean `{close[0]}`? " if close else ""
            hint = f"{meant}`normfold {command} --help` lists the options"
            raise UsageError(
                f"`{file}` has an unknown key `models.{name}.{key}`",
                hint=hint if item is None else "`normfold check` says where files go",
            )
        plain = settings.Option(item.keyword, item.many or item.count > 1, item.named)
        if not named and not settings.may_be_found(key, value, plain):
            raise _may_not(file, f"models.{name}.{key}")
        words += _words(item, value, f"models.{name}.{key}", file)
    asked = {known[key].name for key in values if key not in _OWN}
    timed = command == "quantize" or bool(asked & {"scheme", "keep_if_faster"})
    timed |= any(word.startswith("--require=time") for word in words)
    allow = values.get("allow-unproved", False)
    if not isinstance(allow, bool):
        raise UsageError(
            f"`{file}` has a wrong value for `models.{name}.allow-unproved`",
            found=repr(allow),
            hint="true or false",
        )
    return Run(name, str(command), tuple(words), allow, timed)


def place_of(file: Path, name: str) -> str:
    """``file:number`` of the table of a model; of the first line where it is written in another way."""
    table = re.compile(rf"""\s*\[.*\bmodels\s*\.\s*["']?{re.escape(name)}["']?\s*\]""")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{file}:{next((at for at, line in enumerate(lines, 1) if table.match(line)), 1)}"


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
    if not values:
        raise UsageError(f"`{file}` has no value for `{key}`", found="[]", hint="leave the key out")
    if not all(isinstance(one, (str, int, float)) for one in values) or any(
        "\0" in str(one) for one in values
    ):
        raise UsageError(f"`{file}` has a wrong value for `{key}`", found=repr(value))
    if item.kind == "bool":
        if not isinstance(value, bool):
            raise UsageError(
                f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not a bool"
            )
        return [flag if value else f"--no-{item.key}"]
    if item.kind in ("int", "float") or item.choices:
        try:
            item.value(value)
        except UsageError as error:
            raise UsageError(
                f"`{file}` has a wrong value for `{key}`",
                found=repr(value),
                hint=f"{error.what}{f'; {error.hint}' if error.hint else ''}",
            ) from error
    if item.count > 1:
        return [flag, *map(str, values)]
    if len(values) > 1 and not item.many:
        raise UsageError(
            f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not one value"
        )
    return [f"{flag}={one}" for one in values]


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
                at = place(case.line, root())
                where = ""
                if at is not None and at.own:
                    where = f"file={_escaped(at.path.as_posix(), ':,')},line={at.number},"
                lines.append(f"::{kind} {where}title={title}::{_escaped(case.text)}")
    return lines


def _escaped(text: str, also: str = "") -> str:
    for character in f"%\r\n{also}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
