"""Networks in 8 bits against floats and against onnxruntime's own quantisation, in one interleaved run.

python -m benchmarks.integers [--model resnet18 resnet50 ...] [--batch 1] [--threads N] [--rounds 30]
python -m benchmarks.integers --decided [--model mobilenetv3_large_100 ...]

``default`` is onnxruntime.quantization.quantize_static as it comes (its preprocessing first), with as many noise
images as ours has: times do not depend on ranges. The weights are random and perturbed. A ratio is the median over
the rounds, with its 95 % interval. Census: linear ops that run in integers, from onnxruntime's optimised models.

``--decided`` is what `normfold quantize` writes, with what it leaves in floats because it measured so.
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

import torch
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
DECIDED = [
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "convnext_tiny",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
]
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


def decided(name: str, folder: Path) -> str:
    """A row: what became of the network, and the layers that stay in floats with their milliseconds."""
    model = models.make(name)
    x = models.example_input(model)
    options: dict[str, Any] = {"quantize": "int8", "data": torch.cat([x] * 8), "verify": "off"}
    report = normfold.convert(model, inputs=(x,), output=folder, **options).report
    made = report.quantization[-1]
    placed = made.placement
    assert placed is not None
    low, high = placed.interval
    share = "0" if report.integer_share is None else f"{report.integer_share:.0%}"
    left = [
        f"{item.layers[0]}{f' and {len(item.layers) - 1} more' if len(item.layers) > 1 else ''}: "
        f"{1e3 * item.integers:.2f} against {1e3 * item.floats:.2f}"
        for item in placed.layers
    ]
    whole = "whole network" if placed.whole else "; ".join(left) or "nothing"
    return f"| {name} | {placed.ratio:.2f} ({low:.2f} to {high:.2f}) | {share} | {whole} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description="8 bits against floats and the default.")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--decided", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    if options.decided:
        print(
            "| network | time, of floats | in integers | stays in floats, ms |\n|---|---|---|---|"
        )
        for name in options.model or DECIDED:
            with tempfile.TemporaryDirectory() as folder:
                print(decided(name, Path(folder)), flush=True)
        return
    print(
        "| network | float, ms | default, ms | normfold, ms | over float | over default "
        "| integer (default, normfold) |"
    )
    print("|---" * 7 + "|")
    for name in options.model or MODELS:
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
