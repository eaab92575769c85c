"""From an ONNX file to a serialised engine."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import ExportError, UsageError
from normfold.export.cleanup import Origin
from normfold.export.tensorrt.backend import Backend
from normfold.export.tensorrt.messages import build_error, parse_error
from normfold.export.tensorrt.options import EngineOptions
from normfold.export.tensorrt.profiles import Shapes

_MIB = 1 << 20


@dataclass(frozen=True)
class Binding:
    """An input or output of an engine: its type as in torch (``float32``), -1 where the size is dynamic."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """A serialised engine and what is known of it.

    ``layers`` counts the layers of the typed network by the type of their first output. ``bindings`` are those of
    the network; `normfold.export.tensorrt.engine` compares them with the engine's own.
    """

    plan: bytes
    bindings: tuple[Binding, ...]
    layers: dict[str, int]
    sha256: str
    seconds: float
    warnings: tuple[str, ...] = ()


def build(
    path: Path,
    backend: Backend,
    options: EngineOptions | None = None,
    profile: Mapping[str, Shapes] | None = None,
    *,
    origins: Mapping[str, Origin] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Built:
    """Build an engine from a strongly typed ONNX file.

    Args:
        profile: least, usual and largest shape of every input with a dynamic axis.
        origins: what the file's nodes come from, for messages (`Exported.origins`).
        progress: called with a line of text; one that ends in ``%`` is a share that is done.

    Raises:
        UsageError: an option that the builder has not. ExportError: the parser or the builder refused.
    """
    options = options or EngineOptions()
    backend.check(options)
    start, trt, log = time.perf_counter(), backend.trt, _logger(backend.trt)
    builder = trt.Builder(log)
    network = builder.create_network(backend.network_flags())
    parser = trt.OnnxParser(network, log)
    try:
        parsed = parser.parse_from_file(str(path))
    except Exception as error:  # the binding's own
        raise ExportError(
            "the ONNX file could not be read", where=str(path), found=str(error)
        ) from error
    if not parsed:
        raise parse_error(parser, path, origins or {})
    config = builder.create_builder_config()
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    backend.configure(config, options)
    if profile:
        shapes = builder.create_optimization_profile()
        for name, (least, usual, most) in profile.items():
            try:
                shapes.set_shape(name, least, usual, most)
            except Exception as error:
                raise UsageError(
                    "an optimisation profile was refused", where=name, found=str(error)
                ) from error
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise build_error(log.lines, path, origins or {})
    backend.built(config, options)
    data = bytes(plan)
    return Built(
        data,
        _bindings(trt, network),
        _layers(network),
        hashlib.sha256(data).hexdigest(),
        time.perf_counter() - start,
        tuple(dict.fromkeys(text for level, text in log.lines if level == "WARNING")),
    )


def type_name(dtype: Any) -> str:
    """TensorRT's ``DataType.HALF`` as torch calls it."""
    name = str(dtype).rsplit(".", 1)[-1].lower()
    return {"float": "float32", "half": "float16", "bf16": "bfloat16"}.get(name, name)


def _bindings(trt: Any, network: Any) -> tuple[Binding, ...]:
    found = []
    for kind, count, get in (
        ("input", network.num_inputs, network.get_input),
        ("output", network.num_outputs, network.get_output),
    ):
        for index in range(count):
            tensor = get(index)
            found.append(Binding(tensor.name, kind, type_name(tensor.dtype), tuple(tensor.shape)))
    return tuple(found)


def _layers(network: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            counts[type_name(layer.get_output(0).dtype)] += 1
    return dict(counts.most_common())


def _logger(trt: Any) -> Any:
    """A logger that keeps what is said instead of printing it."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rsplit(".", 1)[-1]
            if level in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                self.lines.append((level, message))

    return Logger()


def _monitor(trt: Any, progress: Callable[[str], None] | None) -> Any:
    """A progress monitor that reports the outermost phase, and lets Control-C through."""
    say = progress or (lambda line: None)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.depth: list[str] = []

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = max(steps, 1)
            self.depth.append(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            share = 100 * (step + 1) // self.steps.get(phase, 1)
            say(f"building the engine: {phase} {min(share, 100)}%")
            return True

        def phase_finish(self, phase: str) -> None:
            if phase in self.depth:
                self.depth.remove(phase)

    return Monitor()
