"""Files that take images as bytes (`--uint8-input`) against files that take normalised floats, on photographs.

python -m benchmarks.raw_bytes [--network resnet18 lite0 vit_tiny_patch16_224] [--crops 16] [--seconds 20]

The largest difference of outputs, relative to the largest output, of the float files; the same along the border is
part of it, as every network here pads. Times of the 8-bit files, interleaved on one thread: the first takes bytes,
the second floats that are normalised already. Random weights but for lite0, photographs from scikit-image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import normfold
from benchmarks import natural
from benchmarks.models import make
from benchmarks.trained_networks import LITE, Scale, lite0

NAMES = ["resnet18", "lite0", "vit_tiny_patch16_224"]
_SESSIONS = 16
SCHEMES = {"resnet18": "int8", "lite0": "int8", "vit_tiny_patch16_224": "int8-dynamic"}


def loaded(name: str) -> tuple[Any, tuple[list[float], list[float]]]:
    """A network, and mean and deviation of its images."""
    if name == "lite0":
        scale: Scale = LITE
        return lite0(), (scale[0], scale[1])
    network: Any = make(name)
    config = network.pretrained_cfg
    return network, (list(config["mean"]), list(config["std"]))


def session(path: Path) -> Any:
    """On one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def fed(path: Path, images: Any) -> Any:
    """What a file gives."""
    run = session(path)
    return run.run(None, {run.get_inputs()[0].name: images})[0]


def ratio(
    first: Path, second: Path, feeds: Sequence[Any], seconds: float
) -> tuple[float, float, float]:
    """Time of the first file relative to the second one's: the median of sessions, and their quartiles.

    Two sessions of one file differ by some percent, as their memory lies elsewhere: each ratio is of two new ones.
    """
    found: list[float] = []
    for turn in range(_SESSIONS):
        order = (0, 1) if turn % 2 else (1, 0)
        made = {place: session((first, second)[place]) for place in order}
        times: dict[int, list[float]] = {0: [], 1: []}
        end = time.perf_counter() + seconds / _SESSIONS
        while len(times[0]) < 8 or time.perf_counter() < end:
            for place in order:
                start = time.perf_counter()
                made[place].run(None, {made[place].get_inputs()[0].name: feeds[place]})
                times[place].append(time.perf_counter() - start)
        found.append(statistics.median(times[0]) / statistics.median(times[1]))
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, low, high


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--steps", type=int, help="of synthesis")
    options = parser.parse_args(arguments)
    pictures, _ = natural.crops(224, (options.crops, 1), 0)
    floats = pictures.numpy()
    whole = np.round(floats * 255).astype(np.uint8)
    print(
        "| network | float files apart | scheme | 8 bits: time of bytes over floats (quartiles) |"
    )
    print("|---|---|---|---|")
    for name in options.network:
        network, (mean, std) = loaded(name)
        given: dict[str, Any] = {
            "uint8_input": True,
            "mean": ",".join(map(str, mean)),
            "std": ",".join(map(str, std)),
        }
        scale, shift = (np.array(x, np.float32).reshape(-1, 1, 1) for x in (std, mean))
        images = ((whole / np.float32(255)) - shift) / scale
        example = (torch.randn(1, 3, 224, 224),)
        files = {}
        with tempfile.TemporaryDirectory() as place:
            for scheme in (None, SCHEMES[name]):
                more: dict[str, Any] = {} if scheme is None else {"quantize": scheme}
                if scheme == "int8":
                    more |= {"keep_if_faster": False, "synthesis_steps": options.steps}
                ways: dict[str, dict[str, Any]] = {"bytes": given, "floats": {}}
                for way, own in ways.items():
                    stem = f"{way}-{scheme}"
                    result = normfold.convert(
                        network, inputs=example, output=Path(place), name=stem, **own, **more
                    )
                    if not result.ok:
                        raise SystemExit(f"{name}, {stem}: {result.report.artefacts}")
                    files[way, scheme] = Path(place) / f"{stem}.onnx"
            mine = fed(files["bytes", None], whole)
            theirs = fed(files["floats", None], images)
            apart = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
            pair = (files["bytes", SCHEMES[name]], files["floats", SCHEMES[name]])
            middle, low, high = ratio(*pair, (whole[:1], images[:1]), options.seconds)
        print(
            f"| {name} | {apart:.1e} | {SCHEMES[name]} | {middle:.3f} ({low:.3f} to {high:.3f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
