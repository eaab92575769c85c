"""From an ONNX file to a serialised engine."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.job import EngineOptions
from normfold.progress import Listener, Progress, silent
from normfold.targets.cleanup import Origin
from normfold.targets.tensorrt.backend import Backend
from normfold.targets.tensorrt.messages import build_error, parse_error, tidy
from normfold.targets.tensorrt.profiles import Shapes

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
    the network; `normfold.targets.tensorrt.engine` compares them with the engine's own.
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
    say: Listener = silent,
) -> Built:
    """Build an engine from a strongly typed ONNX file.

    Args:
        profile: least, usual and largest shape of every input with a dynamic axis.
        origins: what the file's nodes come from, for messages (`Exported.origins`).
        say: takes progress.

    Raises:
        UsageError: an option that the builder has not, or a profile that it refuses.
        ExportError: the parser or the builder refused.
        KeyboardInterrupt: at the next step of the builder after Control-C.
    """
    options, origins = options or EngineOptions(), origins or {}
    backend.check(options)
    start, trt, log = time.perf_counter(), backend.trt, make_logger(backend.trt)
    builder = trt.Builder(log)
    network = builder.create_network(backend.network_flags())
    parser = trt.OnnxParser(network, log)
    with _clean_stdout():
        parsed = parser.parse_from_file(str(path))
    if not parsed:
        raise parse_error(parser, path, origins)
    config = builder.create_builder_config()
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector names types by it
    backend.configure(config, options)
    if profile:
        config.add_optimization_profile(_profile(builder, profile))
    monitor = _monitor(trt, say)
    config.progress_monitor = monitor
    with _interruptible(monitor), _clean_stdout():
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise build_error(log.lines, path, origins)
    backend.built(config, options)
    data = bytes(plan)
    return Built(
        data,
        _bindings(trt, network),
        _layers(network),
        hashlib.sha256(data).hexdigest(),
        time.perf_counter() - start,
        tuple(dict.fromkeys(tidy(text) for level, text in log.lines if level == "WARNING")),
    )


def _profile(builder: Any, profile: Mapping[str, Shapes]) -> Any:
    shapes = builder.create_optimization_profile()
    for name, (least, usual, most) in profile.items():
        try:
            shapes.set_shape(name, least, usual, most)
        except (TypeError, ValueError) as error:  # sizes that are out of order or out of range
            found = f"{least}, {usual}, {most}"
            raise UsageError(
                "an optimisation profile was refused", where=name, found=found
            ) from error
    return shapes


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


def make_logger(trt: Any) -> Any:
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


def _monitor(trt: Any, say: Listener) -> Any:
    """A progress monitor: says the innermost phase, and how much of the whole is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: list[list[Any]] = []  # name, steps, steps that are done; outermost first
            self.most = 0
            self.interrupted = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.phases.append([phase, max(steps, 1), 0])

        def step_complete(self, phase: str, step: int) -> bool:
            share, width = 0.0, 100.0
            for item in self.phases:
                if item[0] == phase:
                    item[2] = min(step + 1, item[1])
                share, width = share + width * item[2] / item[1], width / item[1]
            self.most = max(self.most, min(int(share), 100))
            say(Progress("building the engine", self.most, 100, phase.lower()))
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self.phases = [item for item in self.phases if item[0] != phase]

    return Monitor()


@contextmanager
def _clean_stdout() -> Iterator[None]:
    """The library prints some warnings to stdout past Python: they go to stderr, data stay data."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@contextmanager
def _interruptible(monitor: Any) -> Iterator[None]:
    """Control-C ends a build at its next step: the library swallows what its callbacks raise."""
    before = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()
    if not here or not callable(before):  # signals go elsewhere, or are ignored
        yield
        return

    def stop(*_: Any) -> None:
        monitor.interrupted = True

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if monitor.interrupted:
        raise KeyboardInterrupt
