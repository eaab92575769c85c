"""Names of a pickle resolved to classes and functions, by what they are and not by where they stand.

Admitted are: the layer classes of torch in `library.LAYERS`; `nn.Module` subclasses of torchvision, timm,
transformers, normfold and of packages that the user trusts, where ``__new__`` is object's, ``__setstate__`` is
nn.Module's or was read (`library.SETSTATES`), and attributes are looked up as nn.Module does; their enums and
configurations; the helpers of `library.HELPERS`; the functions of `library.PURE`.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from normfold.errors import LoadError
from normfold.load.library import HELPERS, HOOKS, LAYERS, LIBRARIES, PURE, SETSTATES
from normfold.load.records import Name

_CONFIGS = ("PretrainedConfig", "PreTrainedConfig")


class Refused(Exception):
    """Why a record is not admitted, in words."""


@dataclasses.dataclass(frozen=True)
class Unmade:
    """In place of a class that stands as a value (`self.block_types`): what would call it fails, by its name."""

    name: str


class Admission:
    """Resolves names, each once. ``trusted`` are packages, by dotted prefix, whose code the user trusts."""

    def __init__(self, trusted: tuple[str, ...] = ()) -> None:
        self.trusted = trusted
        self._found: dict[Name, Any] = {}
        self._kinds: dict[Name, tuple[type, bool]] = {}

    def kind(self, name: Any) -> tuple[type, bool]:
        """The class of objects that are made without a constructor, and whether the user trusts its code."""
        if not isinstance(name, Name):
            raise Refused("what is made is computed")
        if name not in self._kinds:
            self._kinds[name] = self._kind(name)
        return self._kinds[name]

    def _kind(self, name: Name) -> tuple[type, bool]:
        value = self.resolve(name)
        if not isinstance(value, type):
            raise Refused("not a class")
        trusted = self._is_trusted(value)
        if not trusted and not (name in LAYERS or name in HELPERS or name in HOOKS):
            _require_form(value)
        return value, trusted

    def value(self, name: Name) -> Any:
        """A class or function that stands where a value stands."""
        if name in PURE or name in LAYERS:
            return self.resolve(name)
        value = self.resolve(name)
        if self._is_trusted(value):
            return value
        if isinstance(value, type):
            if not issubclass(value, nn.Module):
                raise Refused("a class as a value")
            _require_form(value)
            return Unmade(str(name))
        raise Refused("a function as a value")

    def callee(self, name: Name) -> bool:
        """Whether the user trusts what a file calls; else it must be a lookup in an enum."""
        value = self.resolve(name)
        if self._is_trusted(value):
            return True
        if isinstance(value, type) and issubclass(value, enum.Enum):
            if any("_missing_" in vars(base) for base in value.__mro__ if base is not enum.Enum):
                raise Refused("an enum that computes its members")
            if not value.__members__:
                raise Refused("an enum without members: it would make one")
            return False
        raise Refused("the file would call it while loading")

    def resolve(self, name: Name) -> Any:
        """The object of a name that a known library or a trusted package defines."""
        if name not in self._found:
            try:
                self._found[name] = self._resolve(name)
            except Refused as reason:
                self._found[name] = reason
        value = self._found[name]
        if isinstance(value, Refused):
            raise value
        return value

    def _resolve(self, name: Name) -> Any:
        listed = name in LAYERS or name in HELPERS or name in HOOKS or name in PURE
        homes = (*LIBRARIES, *self.trusted)
        if not listed:
            if not _under(name.module, homes):
                raise Refused(_elsewhere(name))
            if not name.name.isidentifier() or "__main__" in name.module.split("."):
                raise Refused("not a plain name")
        try:
            value = vars(importlib.import_module(name.module)).get(name.name)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise Refused(f"`{name.module}` cannot be imported ({reason})") from None
        if value is None:
            raise Refused(f"`{name.module}` has no `{name.name}` (another version?)")
        home = getattr(value, "__module__", None)
        # a module's namespace also holds what it imported: `timm.models.os` is not timm's
        if not listed and not (isinstance(home, str) and _under(home, homes)):
            raise Refused(f"defined in `{home or type(value).__name__}`, not in this library")
        return value

    def _is_trusted(self, value: Any) -> bool:
        home = getattr(value, "__module__", None)
        return callable(value) and isinstance(home, str) and _under(home, self.trusted)


def _elsewhere(name: Name) -> str:
    if name.module.partition(".")[0] == "torch":
        return "not a layer class of torch"
    return "not a known library"


def _require_form(kind: type) -> None:
    """Objects of this class are their attributes: nothing of it runs when one is made, filled or dropped."""
    own: Any = kind.__new__
    if own is not object.__new__:
        raise Refused("its `__new__` is its own")
    if hasattr(kind, "__del__"):
        raise Refused("it has a `__del__`")
    if isinstance(kind, enum.EnumType) or issubclass(kind, types.ModuleType):
        raise Refused("not a module or a configuration")
    setstate = _definer(kind, "__setstate__")
    if issubclass(kind, nn.Module):
        if _full_name(setstate) not in SETSTATES:
            raise Refused("its `__setstate__` is its own")
        if (
            _definer(kind, "__getattr__") is not nn.Module
            or _definer(kind, "__getattribute__") is not object
        ):
            raise Refused("it looks attributes up in its own way")
        return
    if setstate is not None:
        raise Refused("its `__setstate__` is its own")
    is_config = any(base.__name__ in _CONFIGS for base in kind.__mro__)
    if not (is_config or dataclasses.is_dataclass(kind)):
        raise Refused("not a module, an enum or a config class")
    if _definer(kind, "__getattr__") is not None:
        raise Refused("it looks attributes up in its own way")


def _definer(kind: type, name: str) -> type | None:
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def _full_name(kind: type | None) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if kind is not None else ""


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def refusal(where: str, refused: Mapping[str, str]) -> LoadError:
    """The error for what is not admitted: all of it, and the flag that lifts it."""
    listed = "".join(f"\n    {entry} ({reason})" for entry, reason in sorted(refused.items()))
    if any(entry.startswith("__main__.") for entry in refused):
        hint = (
            "the class was defined in a script's `__main__`; move it to a module and save again, "
            "or save `model.state_dict()` and load it with `--model file:Class`"
        )
    else:
        hint = "`--trust-pickle` runs whatever the file says: only for a file that you made"
        tops = sorted({_package(entry) for entry in refused})
        if all(top.isidentifier() and top not in _NOT_TO_TRUST for top in tops):
            flags = " ".join(f"--trust-module {top}" for top in tops)
            hint = f"if you trust that code: `{flags}`; {hint}"
    return LoadError(
        "the file was refused, nothing in it was executed: it names code outside the libraries "
        "that normfold knows",
        where=where,
        found=f"{len(refused)} refused name(s){listed}",
        hint=hint,
    )


_NOT_TO_TRUST = {*sys.stdlib_module_names, "torch", *LIBRARIES}


def _package(entry: str) -> str:
    return entry.partition(".")[0]
