"""Networks in 8 bits against floats and against onnxruntime's own quantisation, in one interleaved run.

python -m benchmarks.integers [--model resnet18 resnet50 ...] [--batch 1] [--threads N] [--rounds 30]

``default`` is onnxruntime.quantization.quantize_static as it comes (its preprocessing first), with as many noise
images as ours has: times do not depend on ranges. The weights are random and perturbed. A ratio is the median over
the rounds, with its 95 % interval. Census: linear ops that run in integers, from onnxruntime's optimised models.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import normfold
from benchmarks import models
from normfold.domains.observed import measure
from normfold.job.presets import preset
from normfold.ranges.ranges import merge_ranges
from normfold.report.timing import figures
from normfold.targets.integer_census import IntegerCensus, integer_census
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession

MODELS = ["resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "densenet121"]
LINEAR = ("Conv", "Gemm", "MatMul", "Add")


def files(name: str, folder: Path) -> dict[str, Path]:
    """The network in floats, as the default quantises it, and as normfold does."""
    model = models.make(name)
    x = models.example_input(model)
    graph, _ = normfold.run(normfold.capture(model, (x,)), preset("folded"), verify="off")
    made = {kind: folder / f"{name}.{kind}.onnx" for kind in ("float", "default", "normfold")}
    export_onnx(graph, made["float"])
    merge_ranges(measure(graph, [(x,)]), {})
    integers, _ = normfold.run(graph, "quantize-weights,quantize-activations,bake", verify="off")
    export_onnx(integers, made["normfold"])
    static(made["float"], made["default"], graph.input_names[0], x)
    return made


def static(source: Path, target: Path, name: str, x: Tensor) -> None:
    """onnxruntime's quantisation with nothing but its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Tensor] = iter([x])

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row.numpy()}

    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(str(prepared), str(target), Reader())


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each in every round, in an order that changes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    order = list(runs)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def faster(times: dict[str, list[float]], than: str) -> str:
    """How many times as fast as another, by the rounds' ratios."""
    found = figures(times[than], times["normfold"])
    low, high = found.interval
    return f"{1 / found.ratio:.2f} ({1 / high:.2f} to {1 / low:.2f})"


def counted(census: IntegerCensus) -> str:
    whole = sum(census.integer.get(kind, 0) for kind in LINEAR)
    return f"{whole} of {whole + sum(census.floats.get(kind, 0) for kind in LINEAR)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description="8 bits against floats and the default.")
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    print(
        "| network | float, ms | default, ms | normfold, ms | over float | over default "
        "| integer (default, normfold) |"
    )
    print("|---" * 7 + "|")
    for name in options.model:
        with tempfile.TemporaryDirectory() as folder:
            made = files(name, Path(folder))
            x = models.example_input(models.make(name), options.batch)
            sessions = {
                kind: RuntimeSession(path, threads=options.threads) for kind, path in made.items()
            }
            times = interleaved({k: s.prepare([x]) for k, s in sessions.items()}, options.rounds)
            census = {kind: counted(integer_census(path)) for kind, path in made.items()}
        middle = {kind: statistics.median(values) for kind, values in times.items()}
        figures = " | ".join(f"{middle[kind]:.1f}" for kind in ("float", "default", "normfold"))
        ratios = f"{faster(times, 'float')} | {faster(times, 'default')}"
        print(
            f"| {name} | {figures} | {ratios} | {census['default']}, {census['normfold']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
