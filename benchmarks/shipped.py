"""The shipped networks in every scheme, without data: test accuracy of the files in onnxruntime.

python -m benchmarks.shipped [--network resnet20 ...] [--scheme int8 ...] [--seeds 0 1 2]

Files are made as users make them (`normfold.convert`); 4-bit blocks are run by onnxruntime with inputs in 8 bits
(`accuracy_level` 4, its default). Points are those lost against the floats' own file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import normfold
from benchmarks.foretold import SHIPPED
from examples import accuracy, shapes
from examples.prepbn import MODELS

NETWORKS = {**SHIPPED, "swin": "swin_shapes.safetensors"}
SCHEMES = ["int8", "int8-dynamic", "int8-weights", "int4-weights"]


def file(module: nn.Module, folder: Path, scheme: str | None, seed: int, pixels: Any) -> Path:
    """A network's file; not timed, so that all of it is on grids."""
    given: dict[str, Any] = {}
    if scheme is not None:
        given = {"quantize": scheme, "seed": seed, "name": scheme}
    if scheme == "int8":
        given |= {"pixels": pixels, "keep_if_faster": False}
    result = normfold.convert(
        module, inputs=(torch.randn(2, 3, 32, 32),), output=folder, **{"name": "floats", **given}
    )
    if not result.ok:
        raise SystemExit(f"{scheme}: {result.report.artefacts}")
    return next(path for path in result.artifacts if path.suffix == ".onnx")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(
        description="Test accuracy of the shipped networks in few bits."
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scheme", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(arguments)
    images = shapes.train_set(256)[0]
    pixels = (float(images.min()), float(images.max()))
    print("| network | scheme | seed | accuracy | points lost | MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name in options.network:
            module = accuracy.load(MODELS / NETWORKS[name])
            floats = file(module, Path(place), None, 0, pixels)
            before = 100 * accuracy.top1(accuracy.onnx_predictor(floats))
            size = floats.stat().st_size / 1e6
            print(f"| {name} | floats | | {before:.2f} | | {size:.2f} |", flush=True)
            for scheme in options.scheme:
                for seed in options.seeds if scheme == "int8" else options.seeds[:1]:
                    path = file(module, Path(place), scheme, seed, pixels)
                    after = 100 * accuracy.top1(accuracy.onnx_predictor(path))
                    size = path.stat().st_size / 1e6
                    lost = before - after
                    line = f"| {name} | {scheme} | {seed} | {after:.2f} | {lost:.2f} | {size:.2f} |"
                    print(line, flush=True)


if __name__ == "__main__":
    main()
