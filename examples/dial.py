"""How much accuracy each LayerNorm of the shipped ViT is worth: replaced cheapest first, untrained and distilled.

python -m examples.dial [--steps 300] [--counts 3 6 9 10 11] [--out out/dial]   (from the root of the clone)

Every point is one line of ``runs.jsonl`` and not made again if it is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

import normfold
from examples import accuracy, shapes
from examples.comparison import Row, logged, pyplot, read
from examples.prepbn import VIT, training_images
from normfold.report.training import Ranking

FACTORY = "examples.nets:vit_tiny_shapes"
COUNTS = [3, 6, 9, 10, 11]


def student(
    output: Path, samples: int, steps: int, norms: Sequence[str], limit: float | None = None
) -> tuple[Row, Ranking]:
    """Test top-1 in percent and other figures with these norms replaced by affines; the ranking.

    Without steps they are not trained. With a limit, those of them are replaced that lose at most so many points
    of the held-out images, untrained, and the student may lose no more.
    """
    result = normfold.convert(
        VIT,
        "affine",
        factory=FACTORY,
        output=output,
        data=training_images(samples),
        norms=norms,
        budget=limit,
        steps=steps,
        max_drop=limit,
    )
    report = result.report.training
    assert report is not None
    assert report.ranking is not None
    row = {
        "gone": sum(s.state == "gone" for s in result.report.sites if s.kind == "layer-norm"),
        "divergence": report.drift["kl"],
        "held_out_drop": report.drop,
        "ok": result.ok,
    }
    if result.ok:  # else nothing was written
        predict = accuracy.onnx_predictor(output / "vit_shapes.onnx")
        row["accuracy"] = 100 * accuracy.top1(predict)
    return row, report.ranking


def plot(rows: list[Row], before: float, path: Path) -> None:
    """Accuracy against the number of norms replaced, untrained and distilled."""
    draw = pyplot()
    if draw is None:
        return
    figure, axis = draw.subplots(figsize=(6, 4))
    for trained, label in ((False, "untrained"), (True, "distilled")):
        points = [(r["count"], r["accuracy"]) for r in rows if bool(r["steps"]) == trained]
        axis.plot(*zip((0, before), *sorted(points), strict=True), marker="o", label=label)
    axis.set(xlabel="LayerNorms replaced, cheapest first", ylabel="top-1 on 2,000 test images, %")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy against the number of norms replaced.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=shapes.TRAIN_IMAGES)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/dial"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, log = arguments.out, arguments.out / "runs.jsonl"

    @cache
    def harms() -> tuple[tuple[str, float], ...]:
        return student(out, arguments.samples, 0, [])[1].harms

    def point(key: Row) -> Row:
        norms = [site for site, _ in harms()[: key["count"]]]
        return student(out, arguments.samples, key["steps"], norms)[0]

    def chosen(key: Row) -> Row:
        return student(out, arguments.samples, key["steps"], [], key["limit"])[0]

    keys = [
        {"count": count, "steps": s} for count in arguments.counts for s in (0, arguments.steps)
    ]
    logged(log, keys, point)
    logged(log, [{"limit": arguments.max_drop, "steps": arguments.steps}], chosen)
    before = 100 * accuracy.top1(accuracy.torch_predictor(accuracy.load(VIT)))
    print(
        f"| replaced | steps | divergence | top-1 |\n|---|---|---|---|\n| 0 | | 0 | {before:.2f} |"
    )
    for row in read(log):
        label = row["count"] if "count" in row else f"{row['gone']} (limit {row['limit']:g})"
        right = f"{row['accuracy']:.2f}" if row["ok"] else f"lost {row['held_out_drop']:.2f}"
        print(f"| {label} | {row['steps']} | {row['divergence']:.4f} | {right} |")
    plot([row for row in read(log) if "count" in row and row["ok"]], before, out / "dial.png")


if __name__ == "__main__":
    main()
