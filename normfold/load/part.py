"""A part of a network, with the inputs that it gets while the whole runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import LoadError, NormfoldError, UsageError, last_line
from normfold.ir.fresh import fresh, unchanged, with_forward
from normfold.ir.paths import bind
from normfold.load import inputs as example_inputs
from normfold.load.nested import Call
from normfold.load.types import Found


def choose(found: Found, path: str, asked: example_inputs.Asked) -> example_inputs.Chosen:
    """Put a part in the place of the network, and choose inputs for it.

    The whole network runs once, and the part gets what it got there. Where the whole does not run on inputs that
    are given, they are those of the part.

    Raises:
        UsageError: there is no such part, or the inputs fit neither.
        LoadError: the part is not called, or is called with something else than tensors and plain values.
    """
    whole, part = found.module, submodule(found.module, path)
    try:
        outer = example_inputs.choose(found, asked)
    except NormfoldError:
        if not callable(asked.inputs) and not len(asked.inputs):
            raise
        inner = replace(found, module=part, inputs=None, exported=None, image_size=None)
        try:
            chosen = example_inputs.choose(inner, asked)
        except NormfoldError:
            chosen = None
        if chosen is None:
            raise
    else:
        part, chosen = _as_called(whole, part, path, outer, asked)
    found.module, found.exported = part, None
    found.source = f"the part `{path}` of {found.source}"
    return chosen


def _as_called(
    whole: nn.Module,
    part: nn.Module,
    path: str,
    outer: example_inputs.Chosen,
    asked: example_inputs.Asked,
) -> tuple[nn.Module, example_inputs.Chosen]:
    calls = recorded(whole, outer.args, outer.kwargs, [path])
    if path not in calls:
        raise LoadError(
            f"`{path}` is not called by `forward`",
            where=type(whole).__name__,
            hint="name a part that is called, or inside of which others are",
        )
    args, kwargs = calls[path]
    leaves = pytree.tree_leaves((args, kwargs))
    if not all(isinstance(leaf, Tensor | bool | int | float | str | None) for leaf in leaves):
        raise LoadError(
            f"`{path}` is called with something else than tensors and plain values",
            where=type(whole).__name__,
            hint="name a part inside of it",
        )
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        part, kwargs = with_constants(part, args, kwargs)
        args = ()
    own = example_inputs.ready(part, args, kwargs, asked)
    notes = outer.notes if outer.notes == own.notes else [*outer.notes, *own.notes]
    chosen = replace(own, origin=f"what `{path}` gets ({outer.origin})", notes=notes)
    return part, chosen


def with_constants(part: nn.Module, args: Any, kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a part whose `forward` takes the tensors of a call only, and the tensors by name.

    What else the part is called with (flags, None) is what the copy always passes on. Its class is another one, so
    that parameters keep their names.
    """
    given = bind(part.forward, args, kwargs)
    parameters = inspect.signature(part.forward).parameters
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    tensors = {
        name: value
        for name, value in given.items()
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    }
    constants = {name: value for name, value in given.items() if name not in tensors}
    own = type(part)

    def forward(self: Any, *positional: Any, **named: Any) -> Any:
        named |= dict(zip(tensors, positional, strict=False))
        return own.forward(self, **named, **constants)

    takes = [
        inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", *tensors)
    ]
    forward.__signature__ = inspect.Signature(takes)  # type: ignore[attr-defined]
    return with_forward(part, forward), tensors


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The part of a network at a path; UsageError with the nearest names where there is none."""
    known: dict[str, nn.Module] = dict(module.named_modules())
    if path and path in known:
        return known[path]
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    children = ", ".join(f"`{name}`" for name, _ in module.named_children())
    raise UsageError(
        f"the network has no part `{path}`",
        found=f"its parts are {children or 'none'}",
        hint=f"did you mean {' or '.join(f'`{name}`' for name in close)}?"
        if close
        else "`normfold inspect MODEL` lists paths",
    )


def recorded(module: nn.Module, args: Any, kwargs: Any, paths: Sequence[str]) -> dict[str, Call]:
    """The first call of each part while the network runs once; of parts that are not called nothing.

    Raises:
        LoadError: the network does not run.
    """
    calls: dict[str, Call] = {}
    copy = fresh(module)
    hooks = []
    for path in paths:

        def enter(_: nn.Module, given: Any, named: Any, path: str = path) -> None:
            clone = pytree.tree_map_only(Tensor, Tensor.clone, (given, named))
            calls.setdefault(path, clone)

        hooks.append(copy.get_submodule(path).register_forward_pre_hook(enter, with_kwargs=True))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given, named = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
            with unchanged(copy):
                copy(*given, **named)
    except Exception as error:
        raise LoadError("the network does not run", found=last_line(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls
