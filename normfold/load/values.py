"""Tensors that the user gives: in a file, or from a function."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from normfold.errors import LoadError, UsageError, boundary
from normfold.load import factory, numpy_files, pickled, probe, state
from normfold.load.guess import float_dtype
from normfold.load.limits import limited
from normfold.load.nested import Call, arranged
from normfold.load.trust import Trust

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors")


def read_file(path: Path, trust_modules: Sequence[str] = ()) -> Any:
    """What a file holds: an array, a tensor, several in a list or by name.

    Raises:
        UsageError: an unknown suffix.
        LoadError: damaged, refused as unsafe, or holding Python objects.
    """
    suffix = path.suffix.lower()
    with boundary("the data cannot be read", str(path)), limited(path):
        return _read(path, suffix, trust_modules)


def _read(path: Path, suffix: str, trust_modules: Sequence[str]) -> Any:
    if suffix in (".npz", ".npy"):
        return numpy_files.read(path, numpy_files.SAMPLES)
    if suffix in (".pt", ".pth"):
        return _torch(path, trust_modules)
    if suffix == ".safetensors":
        return state.read_safetensors(path)
    raise UsageError(
        f"data of the kind `{suffix or path.name}` cannot be read",
        where=str(path),
        hint=f"{', '.join(SUFFIXES)}, a folder of images, or `pkg.mod:loader`",
    )


def _torch(path: Path, trust_modules: Sequence[str]) -> Any:
    try:
        return pickled.read(path, Trust.of(trust_modules, False))
    except LoadError as error:
        if "--trust" not in (error.hint or ""):
            raise
        hint = "data are tensors, in a tuple, a list or a dict: store arrays by `torch.from_numpy`, or as `.npz`"
        raise LoadError(error.what, where=error.where, found=error.found, hint=hint) from None


def given_inputs(text: str, module: nn.Module, trust_modules: Sequence[str] = ()) -> Call:
    """Example inputs out of a file or a function ``pkg.mod:fn``, as arguments and keywords of ``module``.

    A tensor is the first argument, a tuple or list holds them in order, a dictionary by name (or is itself the
    only argument, where its keys are no names of parameters, or its only value is); ``batch.image`` leads into a
    nested input; ``(args, kwargs)`` is taken as it is.

    Raises:
        UsageError: an unknown suffix, or something else than these.
        LoadError: the file is not there, damaged, or refused as unsafe; the function raises.
    """
    path = Path(text).expanduser()
    if path.exists():
        content = read_file(path, trust_modules)
    elif factory.looks_like(text):
        made = factory.resolve(text)
        content = factory.invoke(made, text) if callable(made) else made
    else:
        raise LoadError(
            "there is no such file",
            where=text,
            hint=f"`--inputs` takes a {', '.join(SUFFIXES)} file, or a function `pkg.mod:fn` that returns inputs",
        )
    return as_call(content, module, text)


def as_call(content: Any, module: nn.Module, where: str) -> Call:
    """Values in one of the forms of `given_inputs` as arguments and keywords; UsageError for others."""
    content = pytree.tree_map(partial(_tensor, dtype=float_dtype(module)), content)
    names = probe.keywords(module)
    if isinstance(content, torch.Tensor):
        return (content,), {}
    if isinstance(content, Mapping):
        return _by_name({str(key): value for key, value in content.items()}, names, module, where)
    if isinstance(content, (tuple, list)) and content:
        pair = (
            len(content) == 2 and isinstance(content[0], tuple) and isinstance(content[1], Mapping)
        )
        if pair and all(key in names for key in content[1]):
            return content[0], dict(content[1])
        return tuple(content), {}
    raise UsageError(
        "no example inputs can be taken from this",
        where=where,
        found=f"an object of type `{type(content).__name__}`",
        hint="a tensor, a tuple of them in the order of `forward`, or a dictionary by name",
    )


def _by_name(given: dict[str, Any], names: list[str], module: nn.Module, where: str) -> Call:
    """A dictionary as inputs by name; where its keys are no names it, or its only value, is the only input."""
    strange = [key for key in given if key.partition(".")[0] not in names]
    if not strange or probe.takes_any_keyword(module):
        return arranged(module, given.items())
    found = f"it holds {_listed(given)}; the network takes {_listed(names)}"
    close = difflib.get_close_matches(strange[0], names, 1)
    hint = f"is `{close[0]}` meant?" if close else "call the arrays as the inputs, or give a tuple"
    if len(names) == 1 and strange == list(given):
        failures = [probe.forward(module, (value,), {}) for value in (given, *given.values())[:2]]
        if failures[0] is None:
            return (given,), {}
        if len(given) == 1 and failures[1] is None:
            return tuple(given.values()), {}
        of = failures[-1] if len(given) == 1 else failures[0]
        hint = f"as `{names[0]}` it is not taken, either: {of.message if of else ''}"
    raise UsageError(
        "the values have names that are no inputs of the network",
        where=where,
        found=found,
        hint=hint,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _tensor(leaf: Any, dtype: torch.dtype) -> Any:
    """An array as a tensor; numpy's usual float64 in the type that the network has."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype == object:
        return leaf
    made = torch.from_numpy(np.array(leaf))
    return made.to(dtype) if made.dtype == torch.float64 else made
