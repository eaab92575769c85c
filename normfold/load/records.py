"""A pickle as inert records: what it would import, call and store, without importing, calling or storing anything.

Names that the pickle would look up become `Name`, objects that it would make by a call become `Made`, tensors'
storages become `Stored`; numbers, strings and containers are themselves. `normfold.load.machine` reads them.
Whether objects are then made of them is decided by `normfold.load.rules` and done by `normfold.load.making`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING


@dataclass(frozen=True, order=True)
class Name:
    """A name that a pickle looks up: ``module.name``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Made:
    """An object that a pickle makes by a call.

    Attributes:
        callee: what is called, as a rule a `Name`.
        args: its arguments.
        new: True for ``callee.__new__(callee, *args)``, False for ``callee(*args)``.
        states: what ``__setstate__`` is given, or ``__dict__`` is updated with.
        entries: what is appended to it, or added.
        items: what is stored in it by key.
    """

    callee: Any
    args: Any
    new: bool
    states: list[Any] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class Stored:
    """A persistent id: the tuple by which `torch.save` refers to a tensor's storage."""

    id: Any


def name_of(*parts: Any) -> Name:
    """The name as Python 3 has it; ValueError for what is not two texts."""
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"malformed global {' '.join(map(str, parts))[:80]!r}")
    module, name = parts
    # the same renaming of Python 2 names that torch's unpickler does
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    return Name(module, name)


def key_of(value: Any, depth: int = 0) -> Any:
    """The value, if it is hashed in bounded time: not a tuple of tuples, which a pickle nests for nothing.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, tuple):
        if depth or len(value) > 100:
            raise ValueError("a key that is nested, or too long")
        for item in value:
            key_of(item, depth + 1)
    elif isinstance(value, list | dict | set | frozenset | bytearray):
        raise ValueError(f"a key of type {type(value).__name__}")
    return value


def parts_of(record: Any) -> Iterator[Any]:
    """The records that one record holds directly."""
    if isinstance(record, Made):
        yield record.callee
        yield record.args
        yield from record.states
        yield from record.entries
        for key, value in record.items:
            yield key
            yield value
    elif isinstance(record, Stored):
        yield record.id
    elif isinstance(record, dict):
        yield from record
        yield from record.values()
    elif isinstance(record, list | tuple | set | frozenset):
        yield from record


def every(record: Any) -> Iterator[Any]:
    """``record`` and all that it holds, each once."""
    seen: set[int] = set()
    left = [record]
    while left:
        top = left.pop()
        if id(top) in seen:
            continue
        seen.add(id(top))
        yield top
        left.extend(parts_of(top))
