"""Example inputs in the form that `forward` takes them: bound to parameters, nested, with a batch of two."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir.paths import input_names
from normfold.load import probe
from normfold.load.specs import Spec

Axes = Mapping[str, Collection[int]]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def bind(module: nn.Module, specs: Sequence[Spec]) -> list[Spec]:
    """The specs with the name of a parameter each; without one where only the position can be known.

    Raises:
        UsageError: a parameter that is not there, or more inputs than the network takes.
    """
    known = probe.parameters(module)
    kinds = {p.kind for p in known}
    names = probe.keywords(module)
    free = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    listed = ", ".join(f"`{name}`" for name in names) or "none"
    for spec in specs:
        root = _root(spec)
        if root is not None and root not in names and not probe.takes_any_keyword(module):
            close = difflib.get_close_matches(root, names, n=1, cutoff=0.6)
            hint = f"did you mean `{close[0]}`?" if close else "the name may be left out"
            if len(names) == 1:
                hint += f"; if `{names[0]}` is a dictionary: `--input {names[0]}.{spec.text}`"
            raise UsageError(
                f"`--input {spec.text}`: the network has no input `{root}`",
                found=f"its parameters are {listed}",
                hint=hint,
            )
    free = [name for name in free if name not in {_root(spec) for spec in specs}]
    bound = [spec if spec.name or not free else replace(spec, name=free.pop(0)) for spec in specs]
    unnamed = any(spec.name is None for spec in bound)
    if unnamed and known and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UsageError(
            f"{len(specs)} inputs are given, the network takes {len(names)}",
            found=f"its parameters are {listed}",
        )
    return bound


def _root(spec: Spec) -> str | None:
    return spec.name.partition(".")[0] if spec.name else None


def call(module: nn.Module, specs: Sequence[Spec], values: Sequence[Any]) -> Call:
    """Arguments and keywords out of a value for each spec; ``batch.image`` goes into a dictionary ``batch``.

    Raises:
        UsageError: a name that is a value and something that holds values.
    """
    named = [(s.name, value) for s, value in zip(specs, values, strict=True) if s.name is not None]
    loose = [value for s, value in zip(specs, values, strict=True) if s.name is None]
    args, kwargs = arranged(module, named)
    return (*args, *loose), kwargs


def arranged(module: nn.Module, named: Iterable[tuple[str, Any]]) -> Call:
    """Arguments and keywords out of values by name; ``batch.image`` goes into a dictionary ``batch``.

    Raises:
        UsageError: a name that is a value and something that holds values.
    """
    given: dict[str, Any] = _Place()
    for name, value in named:
        *path, last = name.split(".")
        place = given
        for part in path:
            place = place.setdefault(part, _Place())
            if not isinstance(place, _Place):
                raise UsageError(f"the input `{name}`: `{part}` is given as a whole, too")
        if last in place:
            raise UsageError(f"the input `{name}` has parts that are given, too")
        place[last] = value
    given = {name: _plain(value) for name, value in given.items()}
    args: list[Any] = []
    for parameter in probe.parameters(module):
        if parameter.kind == parameter.KEYWORD_ONLY or parameter.name not in given:
            break
        args.append(given.pop(parameter.name))
    return tuple(args), given


class _Place(dict[str, Any]):
    """What names with dots lead into."""


def _plain(value: Any) -> Any:
    """A place whose keys are 0, 1, ... is a tuple, another one a dictionary."""
    if not isinstance(value, _Place):
        return value
    inner = {key: _plain(item) for key, item in value.items()}
    if set(inner) == {str(place) for place in range(len(inner))}:
        return tuple(inner[str(place)] for place in range(len(inner)))
    return inner


def widened(
    shapes: Sequence[Sequence[int]], names: Sequence[str | None], axes: Axes
) -> Iterator[list[int | None]]:
    """For each input the axis that is a batch of one and is to become larger, or None; in the order to try them.

    First the leading axes (or one that was named as dynamic), then any axis of size 1, then the first input's.
    Inputs that are larger share the batch already; beside a larger first input one of size 1 is shared by all.
    """
    if not shapes or not shapes[0] or shapes[0][0] != 1:
        return

    def leading(shape: Sequence[int], name: str | None) -> int | None:
        places = (0, *sorted(axes.get(name or "", ())))
        return next((axis for axis in places if axis < len(shape) and shape[axis] == 1), None)

    some = [leading(shape, name) for shape, name in zip(shapes, names, strict=True)]
    every = [
        list(shape).index(1) if axis is None and 1 in shape else axis
        for shape, axis in zip(shapes, some, strict=True)
    ]
    first = [0, *[None] * (len(shapes) - 1)]
    seen: list[list[int | None]] = []
    for choice in (some, every, first):
        if choice not in seen:
            seen.append(choice)
            yield choice


def repeated(module: nn.Module, args: Any, kwargs: Any, batch: int, axes: Axes) -> Iterator[Call]:
    """Calls whose batch of one is repeated, in the order to try them."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    names = input_names(module.forward, args, kwargs)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    shapes = [tuple(leaves[place].shape) for place in places]
    for choice in widened(shapes, [names[place] for place in places], axes):
        made = list(leaves)
        for place, axis in zip(places, choice, strict=True):
            if axis is not None:
                made[place] = torch.cat([leaves[place]] * batch, axis)
        again, keywords = pytree.tree_unflatten(made, tree)
        yield again, keywords
