"""Load and capture what a job names: a file, a name, a module, or a graph that is captured already."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from normfold.graph import Graph
from normfold.job import Source
from normfold.load import load
from normfold.load.capture import capture_loaded, input_normalisation
from normfold.progress import Listener, Progress
from normfold.ranges import sidecar

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Opened:
    """A captured network: where it and its inputs are from in words, the bytes of its file, what its inputs are
    normalised by; ``private`` if nobody else holds it."""

    graph: Graph
    text: str
    inputs: str
    size: int
    normalisation: dict[str, Any] | None
    private: bool


def open_source(source: Source, axes: Any, say: Listener) -> Opened:
    """Load and capture.

    Raises:
        LoadError, CaptureError, UsageError: as the parts.
    """
    model = source.model
    if isinstance(model, Graph):
        size, name = model.parameter_bytes(), type(model.original or model.module).__name__
        return Opened(
            model, f"a captured graph of `{name}`", "those of the capture", size, None, False
        )
    loaded = load(
        model,
        factory=source.factory,
        inputs=source.inputs,
        trust_modules=source.trust_modules,
        trust_pickle=source.trust_pickle,
        seed=source.seed,
    )
    say(Progress("capturing"))
    graph = capture_loaded(loaded, source.batch, axes)
    private = not isinstance(model, nn.Module)
    if private:
        _restore_statistics(graph, model)
    return Opened(
        graph,
        loaded.source,
        loaded.inputs_from,
        _size(model) or graph.parameter_bytes(),
        input_normalisation(loaded.module),
        private,
    )


def _restore_statistics(graph: Graph, model: str | os.PathLike[str]) -> None:
    """Take what an earlier run wrote beside a program: its norms are folded, their statistics are not lost."""
    path = sidecar.sidecar_of(model)
    if str(model).endswith(".pt2") and path.is_file():
        count = sidecar.restore(graph, path)
        graph.notes.append(f"statistics of {count} tensors from `{path.name}`")


def _size(model: Any) -> int:
    """Bytes of a model's file, or of the weights in its folder; 0 where there is neither."""
    path = Path(str(model))
    if isinstance(model, nn.Module) or not path.exists():
        return 0
    files = [path] if path.is_file() else [x for x in path.iterdir() if x.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files)
