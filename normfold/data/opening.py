"""A `Source` opened: its network loaded and captured, with the example inputs that it or its samples give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from normfold.data.samples import load_data
from normfold.ir import Graph
from normfold.job import Source
from normfold.job.option import options_of
from normfold.load import load, probe
from normfold.load.capture import capture_loaded, read_axes
from normfold.load.guess import float_dtype
from normfold.load.nested import Call, arranged
from normfold.load.raw_images import with_bytes
from normfold.load.types import Loaded
from normfold.load.values import given_inputs

_ROWS = 2  # a dynamic batch is captured at two


def load_source(
    source: Source, batch: int = _ROWS, floats: Sequence[Collection[str]] = ()
) -> Loaded:
    """Load the network of a source, with example inputs: ``batch`` of them where one is given, or none.

    A network whose type is not in each of ``floats`` becomes float32.

    Raises:
        UsageError, EnvironmentMissing, LoadError: as `normfold.load.load`.
    """
    loaded = load(
        source.model,
        factory=source.factory,
        part=source.part,
        key=source.key,
        task=source.task,
        inputs=_examples(source),
        trust_modules=source.trust_modules,
        trust_pickle=source.trust_pickle,
        batch=batch,
        static=source.batch == "static",
        axes=read_axes(axes_of(source)),
        floats=floats,
        seed=source.seed,
    )
    if source.uint8_input:
        loaded = with_bytes(loaded, source.model, *source.normalisation)
    return loaded


def capture_source(source: Source) -> Graph:
    """Load and capture; a graph is returned as it is.

    Raises:
        UsageError, EnvironmentMissing, LoadError, CaptureError: as the parts; UsageError for options of a capture
            beside a graph.
    """
    if isinstance(source.model, Graph):
        require_means_something(source, ("batch", "dynamic", "task"))
        return source.model
    return capture_loaded(load_source(source), source.batch, axes_of(source))


def require_means_something(source: Source, names: Collection[str]) -> None:
    """Refuse options of loading and capturing, by their fields, for a graph that is captured already.

    The sizes that an engine is built for, as ``x:0=1..8..64``, are no such option.

    Raises:
        UsageError: one that is given.
    """
    plain = [text for text in source.dynamic if "=" not in text]
    given = {**vars(source), "dynamic": tuple(plain)}
    for item in options_of(type(source)):
        if item.name in names and given[item.name] != item.default:
            raise item.error(
                f"`{item.keyword}={given[item.name]!r}`: a graph is captured already",
                hint="give the model, and the option with it",
            )


def axes_of(source: Source) -> list[str]:
    """The dynamic axes of a source as ``NAME:AXIS``, without the sizes that an engine is built for."""
    return [text.partition("=")[0] for text in source.dynamic]


def _examples(source: Source) -> Any:
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
    """The first samples, for each parameter that has no default, or by name; nothing for a folder of images.

    Raises:
        UsageError, LoadError: as `load_data`.
    """
    if isinstance(source.data, (str, Path)) and Path(source.data).is_dir():
        return (), {}  # images are cropped to the size that the network turns out to have
    known = probe.parameters(module)
    known = [p for p in known if p.kind is not p.VAR_KEYWORD]
    data = load_data(
        source.data,
        [p.name for p in known] or ["x"],
        optional=[p.name for p in known if p.default is not p.empty],
        limit=_ROWS,
        trust_modules=source.trust_modules,
    )
    rows = data.inputs(slice(0, 1 if source.batch == "static" else _ROWS))
    dtype = float_dtype(module)
    values = [row.to(dtype) if row.is_floating_point() else row for row in rows]
    return arranged(module, zip(data.names, values, strict=True)) if known else (tuple(values), {})
