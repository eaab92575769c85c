"""The text form of one pass: ``name{option=value}``, which `pipeline.parse` turns back into the pass."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any


def spec_of(item: Any) -> str:
    """Text of a pass (a dataclass with a ``name``); options at their default are left out."""
    options = []
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if value != field.default:
            options.append(f"{field.name.replace('_', '-')}={_print(value)}")
    return str(item.name) + (f"{{{' '.join(options)}}}" if options else "")


def _print(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return "|".join(map(_print, value))
    return str(value)
