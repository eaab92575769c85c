"""8-bit floats on the shipped networks, by how scales and grids are chosen: the figures of docs/integers.md.

python -m benchmarks.float8 [--networks vit resnet20] [--out out/float8]

Each line is a choice: ``chosen`` is what `normfold quantize --scheme fp8 --target trt` does, ``exact`` has scales
that are not rounded to powers of two, ``tight`` no room beyond the ranges, ``sums`` grids of residual sums,
``int8`` the integers for the same target. Ranges are measured on 256 training images, or found without data.
Networks are simulated in float32 and compared with the floats on 2,000 test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from examples.quantize import Bench
from normfold import target as rows
from normfold.ir import Graph
from normfold.job import Quantize, Source
from normfold.judge.agreement import ratios
from normfold.passes import quantize_weights
from normfold.ranges.calibration import calibrate
from normfold.steps.quantize import make_integers

_CHOICES = ("chosen", "exact", "tight", "sums", "int8")
_REAL, _BATCH = 256, 250


@contextmanager
def choice(name: str) -> Iterator[None]:
    """Choose scales and grids so."""
    row = rows.TARGETS["trt"]
    assert row.float_grids is not None
    if name == "sums":
        with patch.dict(
            rows.TARGETS, trt=replace(row, float_grids=replace(row.float_grids, sums=True))
        ):
            yield
    elif name == "tight":
        with patch.object(rows, "_HEADROOM", 1):
            yield
    elif name == "exact":
        with (
            patch.object(rows, "power_of_two", exact),
            patch.object(quantize_weights, "power_of_two", exact),
            patch.object(rows, "_HEADROOM", 1),
        ):
            yield
    else:
        yield


def exact(largest: float, top: int = rows.E4M3_TOP) -> float:
    """The scale that brings the largest value to the end."""
    return largest / top or 1.0


def answers(graph: Graph, images: Tensor) -> list[list[Tensor]]:
    """Class scores, by batch."""
    with torch.no_grad():
        return [[graph(part)] for part in images.split(_BATCH)]


def run(bench: Bench, data: bool) -> Iterator[dict[str, Any]]:
    """One row for each choice."""
    images, right = torch.from_numpy(bench.test), torch.from_numpy(bench.right)
    reference = answers(bench.graph, images)
    said = torch.cat([y for (y,) in reference]).argmax(1)
    known = (bench.real[:_REAL], bench.labels[:_REAL]) if data else None
    for name in _CHOICES:
        scheme: Any = "int8" if name == "int8" else "fp8"
        options = Quantize(scheme, images=64, pixels=bench.pixels)
        calibrated = calibrate(bench.graph, options, Source(data=known, seed=0))
        with choice(name):
            made, _, report, _ = make_integers(calibrated, options, "trt", data=data)
        got = answers(made, images)
        top = torch.cat([y for (y,) in got]).argmax(1)
        yield {
            "network": bench.name,
            "ranges": "images" if data else "none",
            "choice": name,
            "accuracy": round(100 * float((top == right).float().mean()), 2),
            "agreement": round(100 * float((top == said).float().mean()), 2),
            "dB": round(ratios(got, reference)[0], 2),
            "weights": report.weights,
            "floats": round(100 * float((said == right).float().mean()), 2),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=["vit", "resnet20"])
    parser.add_argument("--out", type=Path, default=Path("out/float8"))
    options = parser.parse_args(arguments)
    for name in options.networks:
        bench = Bench(name, options.out)
        for data in (True, False):
            for row in run(bench, data):
                print(row, flush=True)


if __name__ == "__main__":
    main()
