"""What quantising without data foretells of its loss, against the loss on real samples.

python -m benchmarks.foretold [--network lite0 resnet20 ...] [--variant int8 w4 ...] [--out out/foretold.jsonl]

A pair is a network and a way to put it on grids (`VARIANTS`), some of them bad on purpose: weights of few bits,
statistics of another function. Networks are those of `benchmarks.trained` (natural crops, tones) and the shipped
ones (test images). Both are of the simulation, in nats: foretold, on synthesised images alone
(`QuantizationReport.foretold`); true, the KL of the answers to real samples from those of the floats. A line of
the file is a pair, and is not made again. At the end: in how many pairs what was foretold is an upper bound, and
the median of foretold over true.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trained_networks import NETWORKS
from examples import accuracy, shapes
from examples.prepbn import MODELS
from normfold.ir import Graph, capture
from normfold.job import Quantize, Source
from normfold.job.presets import preset
from normfold.judge.agreement import compare
from normfold.ranges.calibration import Inputs, find_inputs, find_ranges, samples_of
from normfold.rewrite import parse, run_pipeline
from normfold.steps.quantize import make_integers

SHIPPED = {
    "resnet20": "resnet20.pt",
    "mobilenet_v2_small": "mobilenet_v2_small.pt",
    "efficientnet_small": "efficientnet_small.pt",
    "vit": "vit_shapes.safetensors",
}
# with convolutions, of 224 pixels and more: fewer crops, and no damage, which needs images of its own
LARGE = ("lite0", "lite1", "lite2", "mobilenetv2")
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "rounded": {"weights": "quantize-weights", "correct_bias": False},
    "no-vnni": {"vnni": False},
    "w6": {"weights": "quantize-weights{bits=6}"},
    "w5": {"weights": "quantize-weights{bits=5 rounding=squant}"},
    "w4": {"weights": "quantize-weights{bits=4 rounding=squant clip=true}"},
    "w4-rounded": {"weights": "quantize-weights{bits=4}", "correct_bias": False},
    "unclipped": {"clip_ranges": False},
    "a6": {"activation_bits": 6},
    "damaged-2": {"damage": 2},
    "damaged-4": {"damage": 4},
}


def loaded(name: str) -> tuple[nn.Module, Tensor, tuple[float, float] | None]:
    """The network, samples to test on, and what valid pixels lie between."""
    if name in SHIPPED:
        images = torch.from_numpy(shapes.test_set()[0][:1000])
        return (
            accuracy.load(MODELS / SHIPPED[name]),
            images,
            (float(images.min()), float(images.max())),
        )
    network = NETWORKS[name]
    _, test = network.samples((64, 112 if name in LARGE else 228), 0)
    ends = network.bounds.strip("[]").split("..") if network.bounds else None
    return network.make(), test, (float(ends[0]), float(ends[1])) if ends else None


def damaged(module: nn.Module, factor: float) -> nn.Module:
    """The same function, and statistics of another one."""
    module = copy.deepcopy(module)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            norm.running_var /= factor**2
            norm.weight.data /= factor
            norm.eps /= factor**2
    return module


class Case:
    """One network, its graph, and the images that are synthesised for it."""

    def __init__(self, name: str, damage: float = 1.0) -> None:
        module, self.test, self.pixels = loaded(name)
        module = damaged(module, damage) if damage != 1 else module
        captured = capture(module, (self.test[:2],))
        text = preset("rmsnorm" if name == "vit" else "folded")
        self.graph, _ = run_pipeline(captured, parse(text))
        self.inputs: Inputs | None = None
        self.original = self.answers(self.graph)

    def answers(self, graph: Graph) -> list[list[Tensor]]:
        with torch.no_grad():
            made = (graph.module(x) for x in self.test.split(32))
            return [[y] if isinstance(y, Tensor) else [y[0]] for y in made]

    def row(self, changes: dict[str, Any]) -> dict[str, Any]:
        step = replace(Quantize("int8", pixels=self.pixels), **changes)
        if self.inputs is None:
            self.inputs = find_inputs(self.graph, step, Source())
        graph = self.graph.copy()
        graph.samples = samples_of(graph, self.inputs)
        found = find_ranges(graph, self.inputs, step)
        made, _, report, _ = make_integers(found, step, "ort-x86")
        true = compare(self.answers(made), self.original, None)
        return {
            "foretold": report.foretold,
            "true": true["kl"],
            "lost": 100 * (1 - true["agreement"]),
            "loss": None if report.evidence is None else report.evidence.loss,
            **{f"drift_{key}": value for key, value in report.drift.items()},
        }


def pairs(
    networks: list[str], variants: list[str], done: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    for name in networks:
        cases: dict[float, Case] = {}
        for variant in variants:
            changes = dict(VARIANTS[variant])
            damage = changes.pop("damage", 1)
            if (name, variant) in done or (damage != 1 and (name in LARGE or name == "vit")):
                continue
            cases[damage] = cases.get(damage) or Case(name, damage)
            yield {"network": name, "variant": variant, **cases[damage].row(changes)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(
        description="The loss that is foretold without data, against the true one."
    )
    names = [*SHIPPED, *(name for name in NETWORKS if name not in ("face", "tiny", "crepe_full"))]
    parser.add_argument("--network", nargs="+", choices=names, default=names)
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("out/foretold.jsonl"))
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(line) for line in options.out.read_text().splitlines()]
        if options.out.exists()
        else []
    )
    done = {(row["network"], row["variant"]) for row in rows}
    for row in pairs(options.network, options.variant, done):
        rows.append(row)
        with options.out.open("a") as file:
            print(json.dumps(row), file=file)
        print(f"{row['network']} {row['variant']}: foretold {row['foretold']}, true {row['true']}")
    print(summary(rows))


def summary(rows: list[dict[str, Any]]) -> str:
    """In how many pairs it is an upper bound, and the median of foretold over true."""
    known = [row for row in rows if row["foretold"] is not None and row["true"] > 0]
    over = sum(row["foretold"] >= row["true"] for row in known)
    ratios = [row["foretold"] / row["true"] for row in known]
    share, middle = over / len(known), statistics.median(ratios)
    return f"{len(known)} pairs: an upper bound in {share:.0%}, median ratio {middle:.2f}"


if __name__ == "__main__":
    main()
