"""Facts as rows of JSON, and tensors by name: any kind, by the fields of its class.

A row names the kind and holds the fields. A tensor is a name in it, made of the row's own and the place of the
field (``3.mean``), so that no tensor is read twice. Numbers that JSON lacks are texts (``inf``).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from normfold.ir.facts import Fact

_BEYOND = ("inf", "-inf", "nan")
_PLAIN = (bool, int, str, types.NoneType)


class RowError(ValueError):
    """A row that is no fact of its kind."""


def to_row(fact: Fact, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row of a fact, and its tensors; ``name`` is the row's own, and begins theirs."""
    tensors: dict[str, Tensor] = {}
    return {"kind": fact.kind_name, "fields": _write(fact, name, tensors)}, tensors


def from_row(
    row: Any, name: str, tensor: Callable[[str], Tensor], known: Mapping[str, type[Fact]]
) -> Fact | None:
    """The fact of a row, or None where its kind is not among the ``known`` ones.

    Args:
        tensor: gives the tensor of this name, or raises KeyError.

    Raises:
        RowError: no kind is named, or a field is missing, not one of the kind's, or of another type.
    """
    kind = _item(row, "kind", name)
    if not isinstance(kind, str):
        raise RowError(f"`{name}.kind` is not a text")
    if kind not in known:
        return None
    found = _read(known[kind], _item(row, "fields", name), name, tensor)
    assert isinstance(found, Fact)
    return found


def _write(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value
        return place
    if isinstance(value, tuple):
        return [_write(part, f"{place}.{at}", tensors) for at, part in enumerate(value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {n: _write(getattr(value, n), f"{place}.{n}", tensors) for n in names}
    raise TypeError(f"`{place}`: a fact cannot hold {type(value)}")


def _read(kind: Any, value: Any, place: str, tensor: Callable[[str], Tensor]) -> Any:
    """The value of type ``kind`` that stands at a place."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _one_of(inner, value, place, tensor)
    if origin is tuple:
        return _tuple(inner, value, place, tensor)
    if kind is Tensor and value == place:
        try:
            return tensor(place)
        except KeyError as error:
            raise RowError(f"there is no tensor `{place}`") from error
    if kind is float and (type(value) is float or value in _BEYOND or _is_small(value)):
        return float(value)
    if kind in _PLAIN and type(value) is kind:
        return value
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, place, tensor)
    raise RowError(f"`{place}` is not {getattr(kind, '__name__', kind)}")


def _is_small(value: Any) -> bool:
    """True for a whole number that a float holds at least in part."""
    return type(value) is int and abs(value) < 1 << 1000


def _one_of(kinds: tuple[Any, ...], value: Any, place: str, tensor: Callable[[str], Tensor]) -> Any:
    for kind in kinds[:-1]:
        try:
            return _read(kind, value, place, tensor)
        except RowError:
            continue
    return _read(kinds[-1], value, place, tensor)


def _tuple(
    kinds: tuple[Any, ...], value: Any, place: str, tensor: Callable[[str], Tensor]
) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RowError(f"`{place}` is not a list")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise RowError(f"`{place}` has {len(value)} entries in place of {len(kinds)}")
    parts = zip(kinds, value, strict=True)
    return tuple(_read(k, part, f"{place}.{at}", tensor) for at, (k, part) in enumerate(parts))


def _fields(kind: Any, value: Any, place: str, tensor: Callable[[str], Tensor]) -> Any:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in value if isinstance(value, dict) else ():
        if name not in names:
            raise RowError(f"`{place}` has no field `{name}`")
    return kind(
        **{n: _read(hints[n], _item(value, n, place), f"{place}.{n}", tensor) for n in names}
    )


def _item(row: Any, name: str, place: str) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise RowError(f"`{place}.{name}` is missing")
    return row[name]
