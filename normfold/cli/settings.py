"""Defaults from a configuration file, below flags and environment.

A file that the user named (`--config FILE`, `NORMFOLD_CONFIG`) may set every option. One that was only found, a
`normfold.toml` or `[tool.normfold]` of pyproject.toml in the current folder, may come with a model from anywhere:
it sets no trust, no code that runs and no path that is written to.
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normfold.errors import UsageError, last_line


@dataclass(frozen=True)
class Option:
    """An option of a command: its parameter, whether it may be repeated, and who may set it.

    Attributes:
        named: only a file that the user named may set it.
        path: whether its values are paths, which are seen from the file's own folder, or may be some.
    """

    parameter: str
    repeatable: bool
    named: bool = False
    path: Literal["", "only", "maybe"] = ""


MODELS = "models"  # the table of `normfold check`
_MAY_BE_CODE = {"data", "passes", "weights"}
Commands = Mapping[str, Mapping[str, Option]]


def configuration() -> Path | None:
    """The file that the user named; it is read before the command's own options are.

    Raises:
        UsageError: there are two.
    """
    words = sys.argv[1:]
    given = [
        word.partition("=")[2] if "=" in word else following
        for word, following in zip(words, [*words, ""][1:], strict=True)
        if word == "--config" or word.startswith("--config=")
    ]
    if len(given) > 1:
        raise UsageError(
            "`--config` is given twice", found=", ".join(given), hint="one file holds all"
        )
    if any(given):  # an option without its value is refused where options are read
        return Path(given[0])
    named = os.environ.get("NORMFOLD_CONFIG", "")
    return Path(named) if named else None


def settings(
    commands: Commands,
    command: str,
    named: Path | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Values by parameter, for one command.

    Keys are spelled like the long options: those at the top are for every command that has such an option,
    those in a table named like a command are for that one and win.

    Args:
        commands: by command name, its options by their long spelling without the dashes.
        command: the one that runs.
        named: the file that the user named; without it one is looked for in ``folder``.
        folder: the current one by default.

    Raises:
        UsageError: the file is not there or not valid TOML, has a key that is neither a command nor an option, or
            was only found and sets what it may not.
    """
    name, table = _named(named) if named is not None else _found(folder or Path.cwd())
    every = {key: option for options in commands.values() for key, option in options.items()}
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in table.items():
        if key == MODELS:  # of `check`
            continue
        if isinstance(value, dict) and key in commands:
            inner = {_known(k, commands[key], name, f"{key}."): v for k, v in value.items()}
            own.update(inner if key == command else {})
        else:
            common[_known(key, [*every, *commands], name)] = value
    options = commands.get(command, {})
    made = {}
    for key, value in {**common, **own}.items():
        option = options.get(key)
        if option is None:
            continue
        if named is None and not may_be_found(key, value, option):
            raise UsageError(
                f"`{name}` sets `{key}`, which a configuration that was only found may not set",
                hint=f"if you know this file: `normfold {command} ... --config {name}`, or "
                f"`NORMFOLD_CONFIG={name}`",
            )
        made[option.parameter] = _placed(_value(key, value, option, name), option, named)
    return made


def models(
    named: Path | None = None, folder: Path | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The file that has the table of models, all else in it, and that table; arguments as of `settings`.

    Raises:
        UsageError: there is none, or it is not a table of tables.
    """
    folder = folder or Path.cwd()
    name, table = _named(named) if named is not None else _found(folder)
    if not isinstance(table.get(MODELS), dict) or not table[MODELS]:
        raise UsageError(
            "there is no table of models",
            where=name or str(folder),
            hint="write `[models.NAME]` with `network = ...` and options of `convert` into normfold.toml",
        )
    found: dict[str, Any] = table[MODELS]
    for key, value in found.items():
        if not isinstance(value, dict):
            raise UsageError(
                f"`{name}` has a wrong value for `{MODELS}.{key}`", found=f"{value!r}, not a table"
            )
    rest = {key: value for key, value in table.items() if key != MODELS}
    return (named or folder / name), rest, found


def may_be_found(key: str, value: Any, option: Option) -> bool:
    """Whether a configuration that was only found may set an option to this value."""
    return not (option.named or (key in _MAY_BE_CODE and _is_code(value)))


def _is_code(value: Any) -> bool:
    """Whether it names code by its place: a loader, `pkg.mod:fn`, or a pass, `pkg.mod:Class`."""
    return ":" in str(value)


def _known(key: str, names: Iterable[str], file: str, prefix: str = "") -> str:
    spelled, names = key.replace("_", "-"), list(names)
    if spelled in names:
        return spelled
    close = difflib.get_close_matches(spelled, names, 1)
    raise UsageError(
        f"`{file}` has an unknown key `{prefix}{key}`",
        hint=f"did you mean `{prefix}{close[0]}`?" if close else f"known: {', '.join(names)}",
    )


def _value(key: str, value: Any, option: Option, file: str) -> Any:
    items = value if isinstance(value, list) else [value]
    plain = all(isinstance(item, (str, int, float, bool)) for item in items)
    if not plain or (isinstance(value, list) and not option.repeatable):
        wanted = "a text, or a list of texts" if option.repeatable else "one value"
        raise UsageError(
            f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not {wanted}"
        )
    return [str(item) for item in items] if option.repeatable else value


def _placed(value: Any, option: Option, file: Path | None) -> Any:
    """A path as it is seen from the current folder; what may be another thing is one where it is there."""
    if file is None or not option.path or file.parent.resolve() == Path.cwd():
        return value
    if isinstance(value, list):
        return [_placed(item, option, file) for item in value]
    path = file.parent / str(value)
    return str(path) if option.path == "only" or path.exists() else value


def _named(file: Path) -> tuple[str, dict[str, Any]]:
    """The table of a file that the user named; of a pyproject.toml its `[tool.normfold]`."""
    if not file.is_file():
        raise UsageError("there is no such configuration file", where=str(file))
    return str(file), _table(file, ("tool", "normfold") if file.name == "pyproject.toml" else ())


def _found(folder: Path) -> tuple[str, dict[str, Any]]:
    """The first file in a folder that says anything, and its table."""
    for name, path in (("normfold.toml", ()), ("pyproject.toml", ("tool", "normfold"))):
        if (folder / name).is_file() and (data := _table(folder / name, path)):
            return name, data
    return "", {}


def _table(file: Path, path: tuple[str, ...]) -> dict[str, Any]:
    try:
        data: Any = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UsageError(
            f"`{file.name}` is not valid TOML", where=str(file), found=last_line(error)
        ) from error
    for key in path:
        data = data.get(key, {})
        if not isinstance(data, dict):
            raise UsageError(f"`{key}` in `{file.name}` is not a table", where=str(file))
    found: dict[str, Any] = data
    return found
