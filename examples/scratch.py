"""The ViT of the shipped model trained from scratch with each kind of norm: accuracy and stability.

python -m examples.scratch [--epochs 18] [--seeds 3] [--out out/scratch]        (from the root of the clone)

Every run is one line of ``runs.jsonl``; runs that are there are not made again, so that an interrupted comparison
goes on. A table is printed, and curves are drawn where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from torch import nn

from examples import shapes
from examples.accuracy import top1, torch_predictor
from examples.nets import vit_tiny_shapes
from examples.train_vit import RECIPE
from examples.training import train
from normfold.nn import Progressive
from normfold.train import refresh_statistics, replace_norms

# name -> kind of norm, its options, share of the steps that PRepBN takes
KINDS: dict[str, tuple[str | None, dict[str, Any], float]] = {
    "LN": (None, {}, 0.0),
    "BN": ("bn", {}, 0.0),
    "RepBN": ("repbn", {"eta": 1.0}, 0.0),
    "PRepBN 0.2": ("prepbn", {"eta": 1.0}, 0.2),
    "PRepBN 0.5": ("prepbn", {"eta": 1.0}, 0.5),
    "PRepBN 0.8": ("prepbn", {"eta": 1.0}, 0.8),
    "UN": ("un", {}, 0.0),
}
_WARM = (
    0.1  # share of the steps that UN does not smooth; the paper's 4000 steps are for longer runs
)
_REFRESH = 4000  # images


def network(name: str, steps: int) -> tuple[nn.Module, Callable[[], None]]:
    """A fresh ViT with this kind of norm, and what to call after every step."""
    kind, options, share = KINDS[name]
    module = vit_tiny_shapes()
    if kind is None:
        return module, lambda: None
    if kind == "un":
        options = {**options, "warmup": round(_WARM * steps)}
    replace_norms(module, kind, **options)
    if not share:
        return module, lambda: None
    return module, Progressive(module, round(share * steps)).step


def run(name: str, seed: int, epochs: int, images: int) -> dict[str, Any]:
    """Train one network; top-1 in percent on the test images, before and after its statistics were taken anew."""
    torch.manual_seed(seed)
    recipe = replace(RECIPE, epochs=epochs, seed=seed)
    module, after = network(name, epochs * (images // recipe.batch))
    start = time.perf_counter()
    history = train(module, recipe, images, after)
    accuracy = 100 * top1(torch_predictor(module))
    if KINDS[name][0] is not None:
        pixels = torch.from_numpy(shapes.train_set(min(images, _REFRESH))[0])
        refresh_statistics(module, pixels.split(100))
    return {
        "norm": name,
        "seed": seed,
        "epochs": epochs,
        "images": images,
        "accuracy": accuracy,
        "refreshed": 100 * top1(torch_predictor(module)),
        "finite": all(bool(torch.isfinite(p).all()) for p in module.parameters()),
        "seconds": time.perf_counter() - start,
        "history": history,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds, as Markdown."""
    lines = [
        "| norm | seeds | top-1 | statistics anew | against LN | seconds |",
        "|---|---|---|---|---|---|",
    ]
    reference = [row["refreshed"] for row in rows if row["norm"] == "LN"]
    for name in KINDS:
        mine = [row for row in rows if row["norm"] == name]
        if not mine:
            continue
        values = [row["refreshed"] for row in mine]
        gap = f"{mean(values) - mean(reference):+.2f}" if reference else ""
        lines.append(
            f"| {name} | {len(mine)} | {mean(row['accuracy'] for row in mine):.2f} | "
            f"{mean(values):.2f} ± {pstdev(values):.2f} | {gap} | "
            f"{mean(row['seconds'] for row in mine):.0f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Training loss and accuracy on 500 test images by epoch, one line per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    names = [name for name in KINDS if any(row["norm"] == name for row in rows)]
    for row in rows:
        color = f"C{names.index(row['norm'])}"
        label = row["norm"] if row["seed"] == 0 else None
        epochs = range(1, len(row["history"]) + 1)
        for axis, place in zip(axes, (0, 1), strict=True):
            axis.plot(epochs, [point[place] for point in row["history"]], color=color, label=label)
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="top-1 on 500 test images, %")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Norms compared from scratch.")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=shapes.TRAIN_IMAGES)
    parser.add_argument("--norms", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/scratch"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "runs.jsonl"
    for seed in range(arguments.seeds):
        for name in arguments.norms:
            if (name, seed, arguments.epochs, arguments.images) in {
                (row["norm"], row["seed"], row["epochs"], row["images"]) for row in _read(log)
            }:
                continue
            print(f"{name}, seed {seed}", flush=True)
            row = run(name, seed, arguments.epochs, arguments.images)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = [row for row in _read(log) if row["epochs"] == arguments.epochs]
    print(table(rows))
    try:
        plot(rows, arguments.out / "curves.png")
    except ImportError:
        print("no curves: matplotlib is not installed")


def _read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    main()
