"""bench: time two networks on this machine, in turn, and say what the difference is worth."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.job import Source
from normfold.judge.bench_inputs import Inputs
from normfold.judge.pairs import Pair, export_bare, in_onnxruntime, in_tensorrt, in_torch, is_engine
from normfold.load.api import require_checkpoint
from normfold.progress import Listener, Progress, silent
from normfold.report import Report, Timing
from normfold.report.timing import FEWEST_ROUNDS, figures

_ORDERS = ("abba", "baab")  # a steady drift cancels within a round, and who goes first changes
_SAMPLE = 0.005  # seconds that one measurement lasts at least: far above the clock's resolution
_WARM_UP = 0.3  # seconds of each side, and at least three runs


def bench(
    a: Any,
    b: Any,
    runtime: Literal["ort", "torch", "trt"] = "ort",
    *,
    batch: int = 1,
    rounds: int = 20,
    seconds: float = 5.0,
    threads: int | None = None,
    provider: str | None = None,
    device: str | None = None,
    compiled: bool = False,
    say: Listener = silent,
    **options: Any,
) -> Timing:
    """Time two networks in turn on the same inputs.

    Args:
        a, b: ``.onnx`` files, or any MODEL that `convert` takes, a module, or a captured graph. With ``ort``
            what is not a file is exported as it is to a temporary one; with ``trt`` both are ``.engine`` files.
        runtime: ``ort`` (onnxruntime), ``torch``, or ``trt`` (TensorRT, on a GPU).
        batch: size of a free first axis.
        rounds, seconds: how long at least; both are met. The result has no say in when it stops.
        threads: threads within one op; by default what the runtime takes.
        provider: onnxruntime's execution provider: ``cpu`` (default), ``cuda``, ``tensorrt`` ... Inputs and
            outputs stay in the host's memory: their way to the device and back is timed too.
        device: of torch: ``cpu`` or ``cuda``, by default the latter where there is one.
        compiled: through torch.compile; compiling is not timed.
        options: of `normfold.job.Source`, by keyword; ``inputs`` are needed for free sizes besides the batch.

    Returns:
        The timing; ``timing.verdict`` says it in words.

    Raises:
        UsageError: options that make no sense, or two networks that do not take the same inputs.
        EnvironmentMissing: the runtime, its provider, a GPU, CUDA or torch.compile does not work here.
        LoadError, CaptureError, ExportError: as `convert`.
    """
    _require_runtime(runtime, a, b, threads, provider, device, compiled)
    _require_sane(batch, rounds, seconds, threads)
    source = Source.of(options)
    require_checkpoint(source.key, a, b)
    texts = [item for item in source.inputs if isinstance(item, str)]
    wanted = Inputs(texts, batch, source.seed)
    with ExitStack() as stack:
        if threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if runtime == "trt":
            pair = in_tensorrt((a, b), wanted, say=say)
        elif runtime == "torch":
            pair = in_torch(
                (a, b),
                wanted,
                threads=threads,
                device=device,
                compiled=compiled,
                say=say,
                source=source,
            )
        else:
            pair = stack.enter_context(
                in_onnxruntime(
                    (a, b),
                    wanted,
                    threads=threads,
                    provider=provider or "cpu",
                    say=say,
                    source=source,
                )
            )
        return measure(pair, rounds, seconds, say=say)


def measure(
    pair: Pair,
    rounds: int = 20,
    seconds: float = 5.0,
    *,
    say: Listener = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time a pair that is ready: rounds of A B B A and B A A B in turn, after a warm-up of both."""
    say(Progress("warming up"))
    start = clock()
    calls = _calls(pair, clock)
    times: dict[str, list[float]] = {"a": [], "b": []}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began = said = clock()
        while len(times["a"]) < rounds or clock() - began < seconds:
            done = len(times["a"])
            spent = dict.fromkeys(times, 0.0)
            for side in _ORDERS[done % 2]:
                spent[side] += _time(getattr(pair, side), calls, pair.wait, clock)
            for side, total in spent.items():
                times[side].append(total / (2 * calls))
            if clock() - said > 0.5:
                said = clock()
                say(Progress("timing", done + 1, rounds, "rounds"))
    finally:
        if collecting:
            gc.enable()
    return Timing(
        *pair.names,
        runtime=pair.runtime,
        inputs=pair.inputs,
        rounds=len(times["a"]),
        calls=calls,
        **asdict(figures(times["a"], times["b"])),
        threads=pair.threads,
        seconds=clock() - start,
        notes=pair.notes,
    )


def time_against_original(
    original: Graph,
    path: Path,
    pipeline: str,
    *,
    opset: int | None = None,
    target: str = "ort-x86",
    say: Listener = silent,
) -> tuple[Timing, Graph, Report]:
    """Time an ONNX file against the original's own export in onnxruntime on the CPU, on the example inputs.

    The original's export is left in a folder ``original`` beside the file.

    Returns:
        The timing, the original's baked graph, and the report of its export.
    """
    folder = path.parent / "original"
    folder.mkdir(exist_ok=True)
    say(Progress("exporting the original"))
    bare, plain = export_bare(original, folder / path.name, opset, target)
    leaves = pytree.tree_leaves((original.args, original.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    with in_onnxruntime(
        (folder / path.name, path), Inputs(), threads=None, provider="cpu", say=say, tensors=tensors
    ) as pair:
        timing = measure(pair, say=say)
    return replace(timing, a="the original, exported as it is", b=f"`{pipeline}`"), bare, plain


def _calls(pair: Pair, clock: Callable[[], float]) -> int:
    """Runs for one measurement, after a warm-up of both sides in turn."""
    shortest, spent, runs = math.inf, 0.0, 0
    while runs < 3 or spent < 2 * _WARM_UP:
        for call in (pair.a, pair.b):
            took = _time(call, 1, pair.wait, clock)
            shortest, spent = min(shortest, took), spent + took
        runs += 1
    return max(1, math.ceil(_SAMPLE / max(shortest, 1e-7)))


def _time(
    call: Callable[[], object], calls: int, wait: Callable[[], None], clock: Callable[[], float]
) -> float:
    wait()
    start = clock()
    for _ in range(calls):
        call()
    wait()
    return clock() - start


def _require_runtime(
    runtime: str,
    a: Any,
    b: Any,
    threads: int | None,
    provider: str | None,
    device: str | None,
    compiled: bool,
) -> None:
    if runtime not in ("ort", "torch", "trt"):
        raise UsageError(f"there is no runtime `{runtime}`", hint="`ort`, `torch` or `trt`")
    if runtime != "trt" and (is_engine(a) or is_engine(b)):
        raise UsageError("engines are run by TensorRT", hint="`--runtime trt`")
    if runtime != "ort" and provider is not None:
        raise UsageError(
            "`--provider` applies only to `--runtime ort`", hint="for torch: `--device`"
        )
    if runtime != "torch" and (device is not None or compiled):
        raise UsageError(
            "`--device` and `--compile` apply only to `--runtime torch`",
            hint="for onnxruntime: `--provider`, or `--runtime torch`",
        )
    if runtime == "trt" and threads is not None:
        raise UsageError("`--threads` are of the CPU, and engines run on the GPU")


def _require_sane(batch: int, rounds: int, seconds: float, threads: int | None) -> None:
    if rounds < FEWEST_ROUNDS:
        raise UsageError(
            f"{rounds} rounds are too few",
            hint=f"a 95 % interval of the median needs at least {FEWEST_ROUNDS}",
        )
    if not 0 <= seconds < math.inf:
        raise UsageError(f"`{seconds}` is not a time to measure for", hint="seconds, 0 or more")
    if batch < 1 or (threads is not None and threads < 1):
        raise UsageError("the batch and the threads are at least 1")
