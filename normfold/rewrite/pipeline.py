"""Pipelines as text: ``canonicalize,fold-affine{direction=both max-gain=1000},restore,bake``.

The text parses to pass objects and prints back to itself; defaults are left out when printing.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.report import PassReport
from normfold.rewrite.base import Pass, require_order
from normfold.rewrite.registry import find

_ITEM = re.compile(r"\s*(?P<name>[A-Za-z0-9_.:-]+)\s*(\{(?P<options>[^{}]*)\})?\s*(?P<end>,|$)")


def parse(text: str) -> list[Pass]:
    """Passes named by a pipeline text.

    Raises:
        UsageError: a malformed text (with a caret under the place), an unknown pass or option, a bad value.
    """
    passes: list[Pass] = []
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None or (item.end() == len(text) and item["end"] == ","):
            caret = " " * position + "^"
            raise UsageError(
                "the pipeline text cannot be read",
                found=f"\n    {text}\n    {caret}",
                hint="write `pass,pass{option=value option=value}`",
            )
        passes.append(_build(item["name"], item["options"] or ""))
        position = item.end()
    if not passes:
        raise UsageError("the pipeline is empty", hint="`normfold passes` lists what there is")
    return passes


def text_of(passes: Sequence[Pass]) -> str:
    """The pipeline text of some passes."""
    return ",".join(str(item) for item in passes)


def require_passes(items: Sequence[Any]) -> list[Pass]:
    """The items, if each is a pass.

    Raises:
        UsageError: one is something else.
    """
    for item in items:
        if not isinstance(item, Pass):
            hint = "passes are objects, as `normfold.rewrite.parse(text)` makes them"
            if isinstance(item, type) and issubclass(item, Pass):
                hint = f"make one of it: `{item.__name__}()`"
            elif isinstance(item, str):
                hint = "names go in one text: `canonicalize,fold-affine`, or through `normfold.rewrite.parse`"
            elif callable(item):
                hint = (
                    "a function on a GraphModule is a pass as `normfold.rewrite.FxPass(function)`"
                )
            raise UsageError(
                "an item of the pipeline is not a pass", found=repr(item)[:100], hint=hint
            )
    return list(items)


def run_pipeline(
    graph: Graph,
    passes: Sequence[Pass],
    after: Callable[[Pass, Graph, PassReport], None] | None = None,
    copy: bool = True,
) -> tuple[Graph, list[PassReport]]:
    """Run passes on a copy of ``graph``; ``after`` is called behind each (verification, printing, progress).

    Raises:
        UsageError: a pass wants what none in front of it makes.
    """
    require_order(require_passes(passes), graph.states)
    if copy:
        graph = graph.copy()
    reports = []
    for item in passes:
        report = item.run(graph)
        reports.append(report)
        if after is not None:
            after(item, graph, report)
    return graph, reports


def _build(name: str, options: str) -> Pass:
    kind = find(name)
    hints = typing.get_type_hints(kind)  # without bounds: the pass checks them
    fields = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for option in options.split():
        key, equals, value = option.partition("=")
        if key not in fields or not equals:
            raise UsageError(
                f"pass `{name}` has no option `{option}`",
                hint=f"options of `{name}`: {', '.join(fields) or 'none'}",
            )
        if fields[key] in values:
            raise UsageError(f"pass `{name}` is given `{key}` twice", found=f"`{options}`")
        values[fields[key]] = _read(name, key, value, hints[fields[key]])
    return kind(**values)


def _read(name: str, key: str, text: str, hint: Any) -> Any:
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        if typing.get_origin(hint) is Literal:
            if text not in typing.get_args(hint):
                raise ValueError(text)
            return text
        if isinstance(hint, type) and issubclass(hint, Enum):
            return hint(text)
        if typing.get_origin(hint) is tuple:
            kind, parts = typing.get_args(hint)[0], text.split("|") if text else []
            if not all(parts):
                raise ValueError(text)
            return tuple(map(kind, parts))
    except (ValueError, KeyError):
        pass
    choices = (
        typing.get_args(hint)
        if typing.get_origin(hint) is Literal
        else (getattr(hint, "__name__", hint),)
    )
    raise UsageError(
        f"option `{key}` of pass `{name}` has a bad value",
        found=f"`{text}`",
        hint=f"expected {' | '.join(map(str, choices))}",
    )
