"""How much accuracy each LayerNorm of the shipped ViT is worth: replaced cheapest first, untrained and distilled.

python -m examples.dial [--steps 300] [--counts 0 2 4 6 8 9 10 11] [--out out/dial]   (from the root of the clone)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import normfold
from examples import accuracy, shapes
from examples.prepbn import VIT, training_images
from normfold.distillation import Recipe, Training
from normfold.report.training import Ranking

FACTORY = "examples.nets:vit_tiny_shapes"


def student(
    norms: list[str],
    output: Path,
    samples: int,
    recipe: Recipe | None,
    limit: float | None = None,
) -> tuple[float, Ranking | None, int]:
    """Test top-1 in percent with these norms replaced by affines, the ranking, and how many norms are gone.

    With a limit, those of them are replaced that lose at most so many points of the held-out images, untrained.
    """
    result = normfold.convert(
        VIT,
        "affine",
        factory=FACTORY,
        output=output,
        training=Training(training_images(samples), norms, limit, recipe, limit),
    )
    training = result.report.training
    if not result.ok:  # an older file may be there
        drop = None if training is None else training.drop
        raise SystemExit(f"{len(norms)} norms: nothing was written; lost {drop} points")
    gone = sum(site.state == "gone" for site in result.report.sites if site.kind == "layer-norm")
    right = accuracy.top1(accuracy.onnx_predictor(output / "vit_shapes.onnx"))
    return 100 * right, None if training is None else training.ranking, gone


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the number of norms replaced, untrained and distilled."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    counts = [row["count"] for row in rows]
    for name in ("untrained", "distilled"):
        axis.plot(counts, [row[name] for row in rows], marker="o", label=name)
    axis.set(xlabel="LayerNorms replaced, cheapest first", ylabel="top-1 on 2,000 test images, %")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy against the number of norms replaced.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=shapes.TRAIN_IMAGES)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 6, 8, 9, 10, 11])
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("out/dial"))
    arguments = parser.parse_args()
    before = 100 * accuracy.top1(accuracy.torch_predictor(accuracy.load(VIT)))
    rows: list[dict[str, Any]] = [{"count": 0, "untrained": before, "distilled": before}]
    _, ranking, _ = student([], arguments.out, arguments.samples, None)
    assert ranking is not None
    print("| norm | divergence when it alone is replaced |\n|---|---|")
    for site, harm in ranking.harms:
        print(f"| {site} | {harm:.4f} |")
    for count in arguments.counts:
        norms = [site for site, _ in ranking.harms[:count]]
        plain, _, _ = student(norms, arguments.out, arguments.samples, None)
        recipe = Recipe(steps=arguments.steps)
        trained, _, _ = student(norms, arguments.out, arguments.samples, recipe)
        rows.append({"count": count, "untrained": plain, "distilled": trained})
        print(f"| {count} | {plain:.2f} | {trained:.2f} |", flush=True)
    chosen, _, gone = student(
        [],
        arguments.out,
        arguments.samples,
        Recipe(steps=arguments.steps),
        arguments.max_drop,
    )
    print(
        f"--budget {arguments.max_drop:g} --max-drop {arguments.max_drop:g}: {gone} replaced, "
        f"{before:.2f} -> {chosen:.2f} %"
    )
    (arguments.out / "dial.json").write_text(json.dumps(rows))
    try:
        plot(rows, arguments.out / "dial.png")
    except ImportError:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
