"""Shipped networks in 8 bits by every source of ranges, on onnxruntime's integer kernels.

python -m examples.quantize [--networks mobilenet_v2_small ...] [--seeds 0 1 2] [--out out/quantize]

Every cell is one line of ``runs.jsonl`` and not made again if it is there. ``ours`` is the default of `normfold
quantize`, ``ours-long`` the same with eight times the steps, ``zeroq`` has the 500 steps of the paper at most.
Real data are 256 training images; the floor of the range error is that of another 256. ``quantize_static`` is
onnxruntime's own, as it comes, with the same real images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import normfold
from examples import accuracy, shapes
from examples.comparison import Row, logged, read
from examples.prepbn import MODELS
from normfold.domains.observed import measure
from normfold.ir import Graph
from normfold.ir.graph import op_name
from normfold.ir.intervals import Interval, range_of
from normfold.job import Quantize, Source
from normfold.job.presets import preset
from normfold.ranges.calibration import calibrate
from normfold.ranges.ranges import distance
from normfold.steps.quantize import make_integers
from normfold.targets.integer_census import integer_census
from normfold.targets.onnx import export_onnx

NETWORKS = {
    "resnet20": "resnet20.pt",
    "mobilenet_v2_small": "mobilenet_v2_small.pt",
    "efficientnet_small": "efficientnet_small.pt",
    "vit": "vit_shapes.safetensors",
}
# steps of the synthesis
SOURCES = {
    "float": 0,
    "noise": 0,
    "analytic": 0,
    "zeroq": 500,
    "ours": 25,
    "ours-long": 200,
    "real": 0,
    "quantize_static": 0,
}
_SEEDED = {"noise", "zeroq", "ours", "ours-long"}
_REAL = 256


class Bench:
    """One network, its float graph, and its answers on the test images."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        module = accuracy.load(MODELS / NETWORKS[name])
        images, labels = shapes.train_set(2 * _REAL)
        self.real, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        captured = normfold.capture(module, (self.real[:2],))
        pipeline = preset("rmsnorm" if name == "vit" else "folded")
        self.graph, _ = normfold.run(captured, pipeline, verify="off")
        self.pixels = (float(self.real.min()), float(self.real.max()))
        self.test, self.right = shapes.test_set()
        folder.mkdir(parents=True, exist_ok=True)
        export_onnx(self.graph, self.float_file)
        self.float_answers = self.answers(self.float_file)

    @property
    def float_file(self) -> Path:
        return self.folder / f"{self.name}.onnx"

    def answers(self, path: Path) -> Any:
        predict = accuracy.onnx_predictor(path)
        return np.concatenate(
            [predict(self.test[at : at + 250]) for at in range(0, len(self.test), 250)]
        )

    def intervals(self, x: Tensor) -> dict[Any, Interval]:
        found = measure(self.graph, [(x[at : at + 64],) for at in range(0, len(x), 64)])
        return {node: item.interval for node, item in found.items()}


def run(bench: Bench, key: Row) -> Row:
    """Accuracy, agreement with the float network, and range error of one source."""
    source, seed, steps = key["source"], key["seed"], key["steps"]
    if source == "float":
        return _judged(bench, bench.float_file)
    path = bench.folder / f"{bench.name}.{source}.onnx"
    if source == "quantize_static":
        _quantize_static(bench, path)
        return _judged(bench, path)
    plain = Quantize("int8", images=64, synthesis_steps=max(1, steps), pixels=bench.pixels)
    chosen: dict[str, Quantize] = {
        "noise": replace(plain, evidence="noise"),
        "analytic": replace(plain, evidence="analytic"),
        "zeroq": replace(plain, evidence="zeroq", synthesis_rate=0.5, flip=False),
    }
    options = chosen.get(source, plain)
    data = (bench.real[:_REAL], bench.labels[:_REAL]) if source == "real" else None
    calibrated = calibrate(bench.graph, options, Source(data=data, seed=seed))
    made, _, report, _ = make_integers(calibrated, options, "ort-x86", data=data is not None)
    export_onnx(made, path)
    row = _judged(bench, path)
    names = _on_grids(made)
    real = {node.name: item for node, item in bench.intervals(bench.real[:_REAL]).items()}
    found = {node.name: range_of(node) for node in calibrated.graph.nodes if node.name in names}
    row["range"] = distance({name: item for name, item in found.items() if item}, real)
    if report.evidence is not None:
        row["loss"], row["noise"] = report.evidence.loss, report.evidence.noise
    return row


def floor(bench: Bench) -> float:
    """Range error of other real images."""
    return distance(bench.intervals(bench.real[_REAL:]), bench.intervals(bench.real[:_REAL]))


def _on_grids(made: Graph) -> set[str]:
    """Names of the tensors that are on grids."""
    return {str(node.args[0]) for node in made.nodes if op_name(node) == "normfold::quantize"}


def _judged(bench: Bench, path: Path) -> Row:
    answers = bench.answers(path)
    census = integer_census(path)
    linear = ("Conv", "Gemm", "MatMul")
    return {
        "accuracy": 100 * float((answers.argmax(1) == bench.right).mean()),
        "agreement": 100 * float((answers.argmax(1) == bench.float_answers.argmax(1)).mean()),
        "integer": sum(census.integer.get(name, 0) for name in linear),
        "total": sum(census.integer.get(name, 0) + census.floats.get(name, 0) for name in linear),
    }


def _quantize_static(bench: Bench, path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(bench.real[:_REAL].split(64))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {bench.graph.input_names[0]: batch.numpy()}

    quantize_static(str(bench.float_file), str(path), Reader())


def main() -> None:
    parser = argparse.ArgumentParser(description="Networks in 8 bits, by source of ranges.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/quantize"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    log = options.out / "runs.jsonl"
    for name in options.networks:
        bench = Bench(name, options.out)
        print(f"{name}: range error of other real images {floor(bench):.3f}")
        keys = [
            {"network": name, "source": source, "seed": seed, "steps": SOURCES[source]}
            for source in options.sources
            for seed in (options.seeds if source in _SEEDED else options.seeds[:1])
        ]
        logged(log, keys, partial(run, bench))
    print(table([row for row in read(log) if row["network"] in options.networks]))


def table(rows: list[Row]) -> str:
    """Means over the seeds, as Markdown."""
    lines = [
        "| network | source | seeds | accuracy | agreement | range error | in integers |",
        "|---" * 7 + "|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        for source in SOURCES:
            mine = [row for row in rows if (row["network"], row["source"]) == (name, source)]
            if not mine:
                continue
            error = f"{mean(row['range'] for row in mine):.2f}" if "range" in mine[0] else ""
            lines.append(
                f"| {name} | {source} | {len(mine)} | {mean(row['accuracy'] for row in mine):.2f} "
                f"| {mean(row['agreement'] for row in mine):.2f} | {error} "
                f"| {mine[0]['integer']} of {mine[0]['total']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
