"""The class of a pass by its name: one of ours, or one that another package offers."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.passes import BUILT_IN, names, plugins
from normfold.rewrite.base import Exactness, Pass


def find(name: str) -> type[Pass]:
    """The pass class of a name; a built-in one whatever plug-ins are called.

    ``pkg.mod:Class`` is a class that no package offers by name.

    Raises:
        UsageError: no such pass (with a did-you-mean), or a plug-in that cannot be imported or is not a pass.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Pass] = getattr(importlib.import_module(module), attribute)
        return built_in
    if ":" in name:
        return _load(EntryPoint(name, name, "normfold.passes"))
    point = plugins().get(name)
    if point is not None:
        return _load(point)
    close = difflib.get_close_matches(name, names(), 1)
    raise UsageError(
        f"unknown pass `{name}`",
        hint=f"did you mean `{close[0]}`?" if close else f"passes: {', '.join(names())}",
    )


def _load(point: EntryPoint) -> type[Pass]:
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # a pass of a project, in its folder
        kind = point.load()
        flaw = _flaw(kind)
    except (Exception, SystemExit) as error:  # whatever another package does at import
        raise _refusal(point, f"{type(error).__name__}: {error}") from error
    if flaw:
        raise _refusal(point, flaw)
    return kind  # type: ignore[no-any-return]


def _flaw(kind: Any) -> str:
    """Why an object cannot be used as the class of a pass; empty if it can."""
    if not (isinstance(kind, type) and issubclass(kind, Pass)):
        return "it is not a subclass of `normfold.Pass`"
    if not isinstance(kind.exactness, Exactness) or not isinstance(
        getattr(kind, "name", None), str
    ):
        return "its `name` must be text and its `exactness` an `Exactness`"
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING:
            return f"its option `{field.name}` has no default"
    return ""


def _refusal(point: EntryPoint, found: str) -> UsageError:
    package = f" of the package `{point.dist.name}`" if point.dist is not None else ""
    return UsageError(
        f"the plug-in pass `{point.name}` cannot be used",
        where=f"{point.value}{package}",
        found=found,
        hint="upgrade or uninstall the package that offers it"
        if point.dist is not None
        else "it is searched in the current folder and in the installed packages",
    )
