"""The shipped networks in every scheme, without data: test accuracy of the files in onnxruntime.

python -m benchmarks.shipped [--network resnet20 ...] [--scheme int8 ...] [--seeds 0 1 2] [--images 2000]

Files are made as users make them (`normfold.convert`); 4-bit blocks are run by onnxruntime with inputs in 8 bits
(`accuracy_level` 4, its default). Points are those lost against the floats' own file, with the standard error of
that difference: the same images are counted for both, so that only answers that turn from right to wrong or back
make it. The first 2,000 of the images are those of all other tables.
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
    parser.add_argument(
        "--images", type=int, default=20_000, help="test images (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    unseen = shapes.test_set(options.images)
    images = shapes.train_set(256)[0]
    pixels = (float(images.min()), float(images.max()))
    print("| network | scheme | seed | accuracy | points lost | MB |\n|---|---|---|---|---|---|")
    error = 100 / options.images**0.5
    with tempfile.TemporaryDirectory() as place:
        for name in options.network:
            module = accuracy.load(MODELS / NETWORKS[name])
            floats = file(module, Path(place), None, 0, pixels)
            before = accuracy.hits(accuracy.onnx_predictor(floats), *unseen)
            size = floats.stat().st_size / 1e6
            print(f"| {name} | floats | | {100 * before.mean():.2f} | | {size:.2f} |", flush=True)
            for scheme in options.scheme:
                for seed in options.seeds if scheme == "int8" else options.seeds[:1]:
                    path = file(module, Path(place), scheme, seed, pixels)
                    after = accuracy.hits(accuracy.onnx_predictor(path), *unseen)
                    lost = before.astype(float) - after
                    points = f"{100 * lost.mean():.2f} ± {error * lost.std():.2f}"
                    size = path.stat().st_size / 1e6
                    line = f"{scheme} | {seed} | {100 * after.mean():.2f} | {points} | {size:.2f}"
                    print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
