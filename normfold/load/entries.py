"""What a checkpoint holds: each tensor by its full dotted name, whatever lies around it.

An entry (`state_dict`) and a prefix of keys (`model.`) are then the same thing, a prefix of full names, and one
search finds both: see `normfold.load.fit`.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from normfold.errors import LoadError, UsageError

_ALIASES = 4  # names under which one object is looked at: lists of one list twice have no end
_OPTIMIZERS = {"optim", "optims", "optimizer", "optimizers", "optimiser", "optimisers"}
_AVERAGES = {"average", "averaged", "avg", "ema", "emas", "polyak", "shadow", "swa", "teacher"}
Path = tuple[str, ...]


@dataclass
class Checkpoint:
    """The tensors of a checkpoint, and where each of them is.

    Attributes:
        content: the checkpoint itself.
        tensors: by full name: ``state_dict.model.conv.weight``.
        holders: for each of them the path of the mapping, list or module that holds it; () is the file.
        modules: whole modules by full name; their tensors are in ``tensors`` too.
        versions: what `state_dict` noted of each layer (``_metadata``), by the layer's full name.
        optimizers: names of states of optimizers, whose tensors are no weights.
        doubled: full names that two tensors have.
    """

    content: Any
    tensors: dict[str, Any] = field(default_factory=dict)
    holders: dict[str, Path] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    optimizers: list[str] = field(default_factory=list)
    doubled: set[str] = field(default_factory=set)

    def under(self, key: str) -> Checkpoint:
        """What ``--key`` leaves: the tensors and modules whose full names begin with it.

        A key that is the end of one entry's name stands for that entry.

        Raises:
            UsageError: there are none, or several such entries.
        """
        tensors = {name: value for name, value in self.tensors.items() if _is_under(name, key)}
        modules = {name: value for name, value in self.modules.items() if _is_under(name, key)}
        if not tensors and not modules:
            ends = self._ending_in(key)
            if len(ends) == 1:
                return self.under(ends[0])
            raise self._several(key, ends) if ends else self._no_such(key)
        return replace(self, tensors=tensors, modules=modules)

    def _ending_in(self, key: str) -> list[str]:
        """Full names that end in ``key``, without those inside of others."""
        found = dict.fromkeys(
            name[: name.index(f".{key}.")] + f".{key}"
            for name in (*self.tensors, *(f"{name}." for name in self.modules))
            if f".{key}." in name
        )
        return list(found)

    def _several(self, key: str, ends: list[str]) -> UsageError:
        error = UsageError(
            f"{len(ends)} entries of the checkpoint have names that end in `{key}`",
            found=quoted(ends, 8),
            hint="give the full name of one: "
            + " or ".join(f"`--key {name}`" for name in ends[:4]),
        )
        error.option = "key"
        return error

    def _no_such(self, key: str) -> UsageError:
        optimizer = any(_is_under(key, name) for name in self.optimizers)
        names = self.entries()
        inside = {part: part for name in self.tensors for part in self._within(name)}
        inside |= {part.rpartition(".")[2]: part for part in inside}
        close = [inside[name] for name in difflib.get_close_matches(key, inside, 1)]
        listed = "it has " + quoted(names, 8)
        error = UsageError(
            f"`--key {key}` is the state of an optimizer, not of a network"
            if optimizer
            else f"the checkpoint has no weights under `--key {key}`",
            found=listed,
            hint=f"did you mean `--key {close[0]}`?" if close else "give one of those names",
        )
        error.option = "key"
        return error

    def _within(self, name: str) -> Iterator[str]:
        """What holds a tensor, and a prefix of its key there: names for ``--key``, from the outermost."""
        parts = name.split(".")
        for count in range(1, min(len(self.holders[name]) + 1, len(parts) - 1) + 1):
            yield ".".join(parts[:count])

    def entries(self) -> list[str]:
        """Names that ``--key`` takes: of what holds tensors, or, in a flat file, the first parts of the keys."""
        deep = len({self.holders[name] for name in self.tensors}) > 8
        names = dict.fromkeys(self.modules)
        for name in self.tensors:
            holder = self.holders[name]
            if not holder:
                names[name.partition(".")[0]] = None
            else:
                names[holder[0] if deep else ".".join(holder)] = None
        return list(names)

    def beside(self, path: Path) -> Iterator[str]:
        """Names of what lies beside the entry at ``path``, and beside each entry around it."""
        for depth, part in enumerate(path):
            at = "".join(f"{outer}." for outer in path[:depth])
            yield from (f"{at}{key}" for key in self.keys(path[:depth]) if key != part)

    def keys(self, path: Path) -> list[str]:
        """The keys of the mapping or list at ``path`` under which there is something."""
        value = self.content
        for part in path:
            value = next((item for key, item in _pairs(value) if key == part), None)
        return [key for key, item in _pairs(value) if item is not None]


def read(content: Any, where: str) -> Checkpoint:
    """Find all tensors, at any depth of mappings, lists and modules; states of optimizers are left out.

    Raises:
        LoadError: no container, or no tensor in it.
    """
    found = Checkpoint(content)
    left: list[tuple[Path, Any]] = [((), content)]
    seen: Counter[int] = Counter()
    while left:
        path, value = left.pop()
        seen[id(value)] += 1
        if seen[id(value)] > _ALIASES:
            continue
        if isinstance(value, nn.Module):
            _add_state(found, path, value.state_dict())
            found.modules[".".join(path)] = value
            continue
        if _is_optimizer(path, value):
            found.optimizers.append(".".join(path))
            continue
        left.extend(reversed(_add_state(found, path, value)))
    if not found.tensors and not found.modules:
        if not isinstance(content, Mapping):
            raise LoadError(
                "the checkpoint holds neither a module nor a state dict",
                where=where,
                found=f"an object of type `{type(content).__name__}`",
            )
        keys = quoted([key for key, _ in _pairs(content)], 5) or "nothing"
        raise LoadError("the checkpoint holds no weights", where=where, found=keys)
    return found


def _add_state(found: Checkpoint, path: Path, value: Any) -> list[tuple[Path, Any]]:
    """Note the tensors that ``value`` holds directly; give the containers in it."""
    inner = []
    at = "".join(f"{part}." for part in path)
    for key, item in _pairs(value):
        if isinstance(item, np.ndarray) and item.dtype.kind in "biufc" and item.dtype.isnative:
            item = torch.from_numpy(np.ascontiguousarray(item))
        # what a layer's `get_extra_state` gave may be anything
        if isinstance(item, torch.Tensor) or key.rpartition(".")[2] == "_extra_state":
            name = at + key
            if name in found.tensors:
                found.doubled.add(name)
            found.tensors[name], found.holders[name] = item, path
        elif isinstance(item, Mapping | list | tuple | nn.Module):
            inner.append(((*path, key), item))
    versions = getattr(value, "_metadata", None)
    if isinstance(versions, Mapping):
        found.versions |= {f"{at}{layer}".rstrip("."): item for layer, item in versions.items()}
    return inner


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(key), item) for key, item in enumerate(value))


def _is_optimizer(path: Path, value: Any) -> bool:
    if isinstance(value, Mapping) and "param_groups" in value and "state" in value:
        return True
    return bool(path) and not _OPTIMIZERS.isdisjoint(_words(path[-1]))


def is_average(name: str) -> bool:
    """Whether a name says that it holds an average of the weights: `ema`, `modelEMA`, `teacher`, ..."""
    return not _AVERAGES.isdisjoint(_words(name))


def common(paths: Iterable[Sequence[str]]) -> Path:
    """The parts that all paths begin with."""
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _is_under(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def quoted(names: Iterable[str], most: int) -> str:
    """Names for a sentence: at most so many, and the number of the others."""
    every = list(names)
    text = ", ".join(f"`{name}`" for name in every[:most])
    return text + (f" and {len(every) - most} others" if len(every) > most else "")
