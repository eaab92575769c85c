"""An option is declared once, as a field of a frozen dataclass; all who ask for it read that field."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from normfold.errors import UsageError

_BRIEF = reprlib.Repr()  # a tensor in the place of a text would fill the screen
_BRIEF.maxstring = 80


@dataclass(frozen=True)
class Declared:
    """What a field says of its option beside type and default.

    Attributes:
        help: one or two sentences; values in backticks.
        flags: spellings on the command line where they are not ``--field-name``; the first one is also its key
            in normfold.toml and, in upper case, in the environment.
        metavar: what stands for the value in the help.
        group: heading in the help.
        when: name of the rule in `normfold.job.rules` that says when the option means something.
        low, high: least and largest value.
        default_text: what happens without it, where the default does not say so.
        keyword: of Python's `convert`, where it is not the field's name.
        named: it widens trust, or names code that runs: a configuration file that was only found may not set it.
    """

    help: str
    flags: tuple[str, ...]
    metavar: str | None
    group: str
    when: str | None
    low: float | None
    high: float | None
    default_text: str
    keyword: str
    named: bool


def option(
    default: Any,
    help: str,
    *flags: str,
    metavar: str | None = None,
    group: str = "",
    when: str | None = None,
    low: float | None = None,
    high: float | None = None,
    default_text: str = "",
    keyword: str = "",
    named: bool = False,
) -> Any:
    """A field that is an option; see `Declared`. Without ``group`` and ``when`` those of the class are taken."""
    said = Declared(help, flags, metavar, group, when, low, high, default_text, keyword, named)
    return dataclasses.field(default=default, metadata={"option": said})


@dataclass(frozen=True)
class Option:
    """A declared option: the field's name, its type taken apart, and what `Declared` says.

    Attributes:
        kind: of one value: ``str``, ``int``, ``float``, ``bool``, ``path`` or ``any``.
        choices: the values that it takes; empty for all of its kind.
        many: it may be repeated.
        count: values that belong together, as the two of an interval.
        owner: the dataclass that declares it.
    """

    name: str
    kind: Literal["str", "int", "float", "bool", "path", "any"]
    choices: tuple[str, ...]
    many: bool
    count: int
    optional: bool
    default: Any
    declared: Declared
    group: str
    when: str | None
    owner: type

    @property
    def flags(self) -> tuple[str, ...]:
        """Spellings on the command line; the long one that counts comes first."""
        return self.declared.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def key(self) -> str:
        """The spelling in normfold.toml."""
        return self.flags[0].removeprefix("--")

    @property
    def folder(self) -> bool:
        """True for a path of a folder; other paths are files."""
        return self.kind == "path" and self.declared.metavar == "FOLDER"

    @property
    def path(self) -> Literal["", "only", "maybe"]:
        """Whether a value names a file or a folder, or may do so beside other things."""
        kinds = (self.declared.metavar or "").split("|")
        if self.kind == "path" or kinds in (["FILE"], ["FOLDER"]):
            return "only"
        return "maybe" if {"FILE", "FOLDER"} & set(kinds) else ""

    @property
    def named(self) -> bool:
        """True where only a configuration file that the user named may set it: trust, code, what is written."""
        return self.declared.named or self.kind == "path"

    @property
    def keyword(self) -> str:
        """The keyword of Python's `convert`."""
        return self.declared.keyword or self.name

    def value(self, given: Any) -> Any:
        """A given value as the field holds it.

        Raises:
            UsageError: another type, not one of the choices, or out of range.
        """
        if given is None and (self.optional or self.many):
            return () if self.many else None
        if self.many:
            items = given if isinstance(given, (list, tuple)) else [given]
            return tuple(self._one(item) for item in items)
        if self.count > 1:
            if not isinstance(given, (list, tuple)) or len(given) != self.count:
                raise self._wrong(given, f"{self.count} values")
            return tuple(self._one(item) for item in given)
        return self._one(given)

    def _one(self, given: Any) -> Any:
        if self.kind == "any":
            return given
        if self.kind == "bool":
            if not isinstance(given, bool):
                raise self._wrong(given, "true or false")
            return given
        if self.kind == "path":
            if not isinstance(given, (str, os.PathLike)):
                raise self._wrong(given, "a path")
            return Path(given)
        if self.kind == "str":
            if not isinstance(given, str):
                raise self._wrong(given, "a text")
            return self._chosen(given)
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        number = number and math.isfinite(given)
        if not number or (self.kind == "int" and given != int(given)):
            raise self._wrong(given, "a whole number" if self.kind == "int" else "a number")
        low, high = self.declared.low, self.declared.high
        if (low is not None and not given >= low) or (high is not None and not given <= high):
            raise self._wrong(given, _span(low, high))
        return int(given) if self.kind == "int" else float(given)

    def _chosen(self, given: str) -> str:
        if not self.choices or given in self.choices:
            return given
        close = difflib.get_close_matches(given.lower(), self.choices, 1)
        known = f"one of: {', '.join(self.choices)}"
        hint = f"did you mean `{close[0]}`? {known}" if close else known
        raise self.error(f"`{self.flags[0]}` does not take `{given}`", hint=hint)

    def _wrong(self, given: Any, wanted: str) -> UsageError:
        return self.error(f"`{self.flags[0]}` takes {wanted}", found=_BRIEF.repr(given))

    def error(self, what: str, **parts: str) -> UsageError:
        """An error about this option."""
        error = UsageError(what, **parts)
        error.option = self.keyword
        return error


def _span(low: float | None, high: float | None) -> str:
    ends = ["" if end is None else f"{end:,}" for end in (low, high)]
    if high is None:
        return f"a number of at least {ends[0]}"
    return f"a number up to {ends[1]}" if low is None else f"a number from {ends[0]} to {ends[1]}"


class Options:
    """Base of the dataclasses that declare options: however one is made, its values are checked."""

    def __post_init__(self) -> None:
        for item in options_of(type(self)):
            object.__setattr__(self, item.name, item.value(getattr(self, item.name)))


def options_of(owner: type) -> tuple[Option, ...]:
    """The options that a dataclass declares, in order; fields that are not options are left out."""
    return _options(owner)


@cache
def _options(owner: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(owner)
    return tuple(
        _read(owner, item, hints[item.name])
        for item in dataclasses.fields(owner)
        if "option" in item.metadata
    )


def _read(owner: type, item: dataclasses.Field[Any], hint: Any) -> Option:
    said: Declared = item.metadata["option"]
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = typing.get_args(hint) if union else (hint,)
    optional = type(None) in parts
    (inner,) = [part for part in parts if part is not type(None)] if optional else [hint]
    many, count = False, 1
    if typing.get_origin(inner) is tuple:
        arguments = typing.get_args(inner)
        many, count = Ellipsis in arguments, 1 if Ellipsis in arguments else len(arguments)
        inner = arguments[0]
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    kinds: dict[Any, Any] = {int: "int", float: "float", bool: "bool", Path: "path", Any: "any"}
    return Option(
        item.name,
        "str" if choices else kinds.get(inner, "str"),
        choices,
        many,
        count,
        optional,
        item.default,
        said,
        said.group or getattr(owner, "GROUP", ""),
        said.when or getattr(owner, "WHEN", None),
        owner,
    )


def given_options(values: Any) -> Iterator[tuple[Option, Any]]:
    """The options of a dataclass object that differ from their defaults, and their values."""
    for item in options_of(type(values)):
        value = getattr(values, item.name)
        if not same(value, item.default):
            yield item, value


def same(a: Any, b: Any) -> bool:
    """Equality of plain values; arrays and tensors in it are never equal to a default."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, (str, int, float, bool, Path)) and bool(a == b)


def unknown(name: str, known: Mapping[str, Any]) -> UsageError:
    """An error for a name that is not an option, with the nearest one."""
    close = difflib.get_close_matches(name, known, 1)
    return UsageError(
        f"there is no option `{name}`",
        hint=f"did you mean `{close[0]}`?" if close else "`normfold convert --help` lists them",
    )
