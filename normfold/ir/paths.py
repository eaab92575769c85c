"""Names of inputs and outputs by their place: ``image``, ``batch.image``, ``maps.0``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

Path = tuple[Any, ...]


def text_of(path: Path) -> str:
    """``maps.0`` for a path in a nest of dictionaries, lists and tuples."""
    return ".".join(_part(entry) for entry in path)


def _part(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def bind(forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of the parameters, in the order of the signature."""
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)


def named_leaves(forward: Callable[..., Any], args: Any, kwargs: Any) -> list[tuple[str, Any]]:
    """Names and values of everything that a call passes in, as it is flattened: ``(args, kwargs)``."""
    return [(name, leaf) for name, _, leaf in _leaves(forward, args, kwargs)]


def input_names(forward: Callable[..., Any], args: Any, kwargs: Any) -> list[str]:
    """The names of `named_leaves`."""
    return [name for name, _, _ in _leaves(forward, args, kwargs)]


def _leaves(
    forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> list[tuple[str, Path, Any]]:
    parameters = list(inspect.signature(forward).parameters.values())
    places: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            places += [f"{parameter.name}.{i}" for i in range(len(args) - len(places))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            places.append(parameter.name)
    places += [f"args.{i}" for i in range(len(places), len(args))]
    found: list[tuple[str, Path, Any]] = []
    for name, value in (*zip(places, args, strict=False), *kwargs.items()):
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            found.append((".".join([name, *map(_part, path)]), path, leaf))
    return found


def output_names(value: Any) -> list[tuple[str, Any]]:
    """Names and values of what a network returns.

    A single tensor is ``output``, one of several in a row ``output_0``; keys and fields name the others.
    """
    found = []
    for path, leaf in pytree.tree_flatten_with_path(_known(value))[0]:
        text = text_of(path)
        if not text:
            text = "output"
        elif text[0].isdigit():
            text = f"output_{text}"
        found.append((text, leaf))
    return found


def distinct(outputs: Sequence[str], inputs: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Names of outputs of which none is an input's or comes twice, and notes on what is called otherwise.

    The output of an input's name, such as a state that goes round, is ``state_out``; the second of one name
    ``x_2``.
    """
    names: list[str] = []
    notes = []
    for name in outputs:
        new = f"{name}_out" if name in inputs else name
        stem, number = new, 2
        while new in names or new in inputs or (new != name and new in outputs):
            new, number = f"{stem}_{number}", number + 1
        if new != name:
            notes.append(f"`{new}` for `{name}`")
        names.append(new)
    said = "outputs have names of their own, which no input and no other output has"
    return tuple(names), [f"{said}: {', '.join(notes)}"] if notes else []


def _known(value: Any) -> Any:
    """Mappings as dictionaries: types that others have registered may have no names for their parts."""
    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_known(item) for item in value)
    return value
