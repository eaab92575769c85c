"""Load and capture what a job names: a file, a name, a module, or a graph that is captured already."""

from __future__ import annotations

import gc
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from normfold.data.opening import axes_of, load_source, require_means_something
from normfold.ir import Graph
from normfold.job import Job, Source
from normfold.judge import Verifier
from normfold.judge.inputs import own_samples
from normfold.load.capture import capture_loaded, input_normalisation
from normfold.progress import Listener, Progress
from normfold.ranges import sidecar
from normfold.report.events import Loaded, Noted, Recorder
from normfold.steps.names import named
from normfold.steps.work import Work

_OF_CAPTURE = ("factory", "part", "key", "task", "batch", "dynamic")
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


def begin(job: Job, record: Recorder, say: Listener) -> Work:
    """Load and capture the network of a job, and get its judge.

    Raises:
        LoadError, CaptureError, UsageError: as the parts.
    """
    say(Progress("loading"))
    chosen = job.cast.precision if job.cast is not None else None
    rows = [item.target for item in job.export.requests] if chosen in (None, "fp32") else []
    source = open_source(job.source, say, [row.floats for row in rows])
    graph, seed = source.graph, job.source.seed
    record.emit(Loaded(source.text, source.inputs, source.size, graph.parameter_bytes()))
    named(graph, job.export)  # refuses a wrong number of names
    samples = own_samples(graph, job.source)
    judges = job.policy.verify != "off"
    verifier = Verifier(graph, seed, samples, job.policy.tries) if judges else None
    for text in verifier.notes if verifier is not None else ():
        record.emit(Noted(text))
    if verifier is None and source.private and "module" not in job.export.export:
        # nothing to compare with: the old weights go while the new ones are made
        graph.original = None
        gc.collect()  # torch.export leaves cycles that hold them
    return Work(job, record, say, graph, verifier, samples, source.normalisation, source.private)


def open_source(source: Source, say: Listener, floats: Sequence[Collection[str]] = ()) -> Opened:
    """Load and capture; in float32 where one of ``floats`` lacks the type that the network is stored in.

    Raises:
        LoadError, CaptureError, UsageError: as the parts.
    """
    model = source.model
    if isinstance(model, Graph):
        trust = () if source.data is not None else ("trust_modules", "trust_pickle")
        require_means_something(source, (*_OF_CAPTURE, "uint8_input", *trust))
        size, name = model.parameter_bytes(), type(model.original or model.module).__name__
        return Opened(
            model, f"a captured graph of `{name}`", "those of the capture", size, None, False
        )
    loaded = load_source(source, floats=floats)
    say(Progress("capturing"))
    graph = capture_loaded(loaded, source.batch, axes_of(source))
    private = not isinstance(model, nn.Module)
    if private:
        _restore_statistics(graph, model)
    return Opened(
        graph,
        loaded.source,
        loaded.inputs_from,
        _size(model) or graph.parameter_bytes(),
        None if source.uint8_input else input_normalisation(loaded.module),
        private,
    )


def _restore_statistics(graph: Graph, model: str | os.PathLike[str]) -> None:
    """Take what an earlier run wrote beside a program: its norms are folded, their statistics are not lost."""
    path = sidecar.sidecar_of(model)
    if str(model).endswith(".pt2") and path.is_file():
        found = sidecar.restore(graph, path)
        graph.notes.append(f"statistics of {found.tensors} tensors from `{path.name}`")
        if found.skipped:
            text = f"{found.skipped} facts in `{path.name}` are of kinds that are not read"
            graph.notes.append(text)


def _size(model: Any) -> int:
    """Bytes of a model's file, or of the weights in its folder; 0 where there is neither."""
    path = Path(str(model))
    if isinstance(model, nn.Module) or not path.exists():
        return 0
    files = [path] if path.is_file() else [x for x in path.iterdir() if x.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files)
