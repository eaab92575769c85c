"""Defaults from `normfold.toml` or `[tool.normfold]` of pyproject.toml, below flags and environment."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import UsageError


@dataclass(frozen=True)
class Option:
    """An option of a command: the name of its parameter, and whether it may be repeated."""

    parameter: str
    repeatable: bool


Commands = Mapping[str, Mapping[str, Option]]


def settings(commands: Commands, folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """A default map for click, by command and parameter.

    Keys are spelled like the long options: those at the top are for every command that has such an option,
    those in a table named like a command are for that one and win.

    Args:
        commands: by command name, its options by their long spelling without the dashes.
        folder: where the files are; the current one by default.

    Raises:
        UsageError: the file is not valid TOML, has a key that is neither a command nor an option, or asks to trust
            pickles.
    """
    name, table = _read(folder or Path.cwd())
    every = {key: option for options in commands.values() for key, option in options.items()}
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        if isinstance(value, dict) and key in commands:
            own[key] = {
                _known(inner, commands[key], name, f"{key}."): content
                for inner, content in value.items()
            }
        else:
            common[_known(key, [*every, *commands], name)] = value
    return {
        command: {
            option.parameter: _value(key, value, option, name)
            for key, value in {**common, **own.get(command, {})}.items()
            if (option := options.get(key)) is not None
        }
        for command, options in commands.items()
    }


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
    if key == "trust-pickle":  # a checked-out repository must not lift the gate for its own files
        raise UsageError(
            f"`trust-pickle` is not taken from `{file}`",
            hint="give `--trust-pickle` yourself, for files whose maker you trust",
        )
    items = value if isinstance(value, list) else [value]
    plain = all(isinstance(item, (str, int, float, bool)) for item in items)
    if not plain or (isinstance(value, list) and not option.repeatable):
        wanted = "a text, or a list of texts" if option.repeatable else "one value"
        raise UsageError(
            f"`{file}` has a wrong value for `{key}`", found=f"{value!r}, not {wanted}"
        )
    return [str(item) for item in items] if option.repeatable else value


def _read(folder: Path) -> tuple[str, dict[str, Any]]:
    """The first file that says anything, and its table."""
    for name, path in (("normfold.toml", ()), ("pyproject.toml", ("tool", "normfold"))):
        file = folder / name
        if not file.is_file():
            continue
        try:
            data: Any = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(
                f"`{name}` is not valid TOML", where=str(file), found=str(error)
            ) from error
        for key in path:
            data = data.get(key, {})
            if not isinstance(data, dict):
                raise UsageError(f"`{key}` in `{name}` is not a table", where=str(file))
        if data:
            return name, data
    return "", {}
