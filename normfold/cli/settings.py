"""Defaults from `normfold.toml` or `[tool.normfold]` of pyproject.toml, below flags and environment."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from normfold.errors import UsageError

_COMMANDS = ("convert", "inspect", "plan", "verify", "bisect")


def settings(folder: Path | None = None) -> dict[str, Any]:
    """A default map for click: top-level keys for every command, tables named like a command for one.

    Raises:
        UsageError: the file is not valid TOML.
    """
    table = _table(folder or Path.cwd())
    common = {_key(key): value for key, value in table.items() if not isinstance(value, dict)}
    own = {name: value for name, value in table.items() if isinstance(value, dict)}
    return {
        name: {**common, **{_key(key): value for key, value in own.get(name, {}).items()}}
        for name in _COMMANDS
    }


def _key(key: str) -> str:
    return key.replace("-", "_")


def _table(folder: Path) -> dict[str, Any]:
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
        if data:
            return dict(data)
    return {}
