"""The example inputs of a job: given as texts or values, in a file, by a function, or taken from the samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from normfold.data.samples import load_data
from normfold.job import Source
from normfold.load import probe
from normfold.load.guess import float_dtype
from normfold.load.values import Call, given_inputs

_ROWS = 2  # a dynamic batch is captured at two


def examples(source: Source) -> Any:
    """What `normfold.load.load` takes as ``inputs``."""
    if source.inputs_from is not None:
        return partial(_from_file, source)
    if (
        len(source.inputs) == 0
        and source.data is not None
        and not isinstance(source.data, Iterator)
    ):
        return partial(_from_samples, source)
    return source.inputs


def _from_file(source: Source, module: nn.Module) -> Call:
    assert source.inputs_from is not None
    return given_inputs(source.inputs_from, module, source.trust_modules)


def _from_samples(source: Source, module: nn.Module) -> Call:
    """The first samples, one tensor for each parameter that has no default; nothing for a folder of images.

    Raises:
        UsageError, LoadError: as `load_data`.
    """
    if isinstance(source.data, (str, Path)) and Path(source.data).is_dir():
        return (), {}  # images are cropped to the size that the network turns out to have
    known = probe.parameters(module)
    names = [p.name for p in known if p.default is p.empty and p.kind is not p.VAR_KEYWORD] or ["x"]
    data = load_data(source.data, names, limit=_ROWS, trust_modules=source.trust_modules)
    rows = data.inputs(slice(0, 1 if source.batch == "static" else _ROWS))
    dtype = float_dtype(module)
    return tuple(row.to(dtype) if row.is_floating_point() else row for row in rows), {}
