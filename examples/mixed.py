"""A format for every layer, against uniform, random and size-ordered choices of the same size.

python -m examples.mixed [--networks mobilenet_v2_small vit ...] [--shares 0.6 0.8] [--out out/mixed]

3 or 8 bits for convolutions, which is a simulation (stored in 8 bits, run by onnxruntime's integer kernels); for
the ViT blocks of 4 bits, 8 bits, or floats, which are executed. Sizes are shares of the weights in 8 bits. Harms
are measured on synthesised inputs. Every cell is one line of ``runs.jsonl`` and not made again if it is there.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.comparison import Row, logged, read
from examples.quantize import NETWORKS, Bench
from normfold.job import Quantize
from normfold.ranges.allocate import within
from normfold.ranges.calibration import Calibrated, calibrate
from normfold.ranges.mixed import BLOCK, FLOAT, Allocation, allocate, executed, pipeline, size
from normfold.ranges.sensitivity import Layer, joint_harm, sensitivities
from normfold.rewrite import parse, run_pipeline
from normfold.targets.onnx import export_onnx

LOW = 3
SHARES = {True: (0.45, 0.55, 0.7), False: (0.6, 0.7, 0.85)}  # simulated; executed


class Choices:
    """Ways to give every layer of a network its bits within a size."""

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.simulated = bench, bench.name != "vit"
        options = Quantize("int8", images=64, synthesis_steps=steps, pixels=bench.pixels)
        self.calibrated: Calibrated = calibrate(bench.graph, options)
        formats = _simulated if self.simulated else executed
        blocks = 0 if self.simulated else BLOCK
        inputs = self.calibrated.inputs
        self.layers = sensitivities(self.calibrated.graph, inputs, formats, blocks)
        self.found: Allocation = allocate(self.layers, formats)
        self.formats = formats
        self.eight = sum(layer.weights for layer in self.layers)

    def bits(self, how: str, share: float, seed: int) -> dict[str, int] | None:
        """The bits of every layer; None where nothing fits."""
        if how == "normfold":
            choice = within(self.found.choices, share * self.eight)
            return None if choice is None else self.found.bits(choice)
        if how.startswith("all "):
            least = int(how.removeprefix("all "))
            return {
                layer.path: min(n for n in self.formats(layer) if n >= least)
                for layer in self.layers
            }
        order = list(self.layers)
        if how == "random":
            random.Random(seed).shuffle(order)
        else:
            order.sort(key=lambda layer: layer.weights)
        found = {layer.path: min(self.formats(layer)) for layer in self.layers}
        for layer in order:  # each in turn gets 8 bits, if there is room
            tried = {**found, layer.path: 8}
            if self.size(tried) <= share * self.eight:
                found = tried
        return found

    def size(self, bits: dict[str, int]) -> float:
        return sum(size(layer, bits[layer.path]) for layer in self.layers)

    def run(self, key: Row) -> Row:
        """Accuracy in onnxruntime, size, and the harm that was foretold and that there is."""
        bits = self.bits(key["how"], key["share"], key["seed"])
        if bits is None:
            return {"accuracy": None}
        graph, inputs = self.calibrated.graph, self.calibrated.inputs
        text = pipeline(bits, self.simulated)
        lowered, _ = run_pipeline(graph, parse(text))
        made, _ = run_pipeline(lowered, parse("quantize-activations,bake"))
        path = self.bench.folder / f"{self.bench.name}.mixed.onnx"
        export_onnx(made, path)
        answers = self.bench.answers(path)
        return {
            "accuracy": 100 * float((answers.argmax(1) == self.bench.right).mean()),
            "size": self.size(bits) / self.eight,
            "foretold": sum(layer.harm.get(bits[layer.path], 0.0) for layer in self.layers),
            "divergence": joint_harm(graph, [lowered], inputs)[0][0],
            "bits": {str(n): list(bits.values()).count(n) for n in (LOW, 4, 8, FLOAT)},
        }


def _simulated(layer: Layer) -> Sequence[int]:
    return (LOW, 8)


def table(rows: list[Row]) -> str:
    """As Markdown, random choices averaged."""
    lines = ["| network | share | choice | size | top-1 | KL foretold | KL |", "|---" * 7 + "|"]
    kept = [row for row in rows if row["accuracy"] is not None]
    for key in dict.fromkeys((row["network"], row["share"], row["how"]) for row in kept):
        mine = [row for row in kept if (row["network"], row["share"], row["how"]) == key]
        values = [sum(row[name] for row in mine) / len(mine) for name in _FIGURES]
        spread = (
            f" ({min(r['accuracy'] for r in mine):.2f} to {max(r['accuracy'] for r in mine):.2f})"
        )
        accuracy = f"{values[1]:.2f}{spread if len(mine) > 1 else ''}"
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {values[0]:.3f} | {accuracy} "
            f"| {values[2]:.3g} | {values[3]:.3g} |"
        )
    return "\n".join(lines)


_FIGURES = ("size", "accuracy", "foretold", "divergence")


def main() -> None:
    parser = argparse.ArgumentParser(description="A format for every layer.")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["mobilenet_v2_small", "vit"]
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[])
    parser.add_argument("--random", type=int, default=3, help="random choices of each size")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/mixed"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    log = options.out / "runs.jsonl"
    for name in options.networks:
        choices = Choices(Bench(name, options.out), options.steps)
        uniform = [f"all {LOW}" if choices.simulated else "all 4", "all 8"]
        keys = [{"how": how, "share": 1.0, "seed": 0} for how in uniform]
        for share in options.shares or SHARES[choices.simulated]:
            keys += [{"how": how, "share": share, "seed": 0} for how in ("normfold", "small first")]
            keys += [{"how": "random", "share": share, "seed": n} for n in range(options.random)]
        same = {"network": name, "steps": options.steps}
        logged(log, [{**same, **key} for key in keys], choices.run)
    print(table([row for row in read(log) if row["network"] in options.networks]))


if __name__ == "__main__":
    main()
