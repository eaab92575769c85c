"""A shipped transformer without LayerNorms: PRepBN and UN, distilled from it, folded away, evaluated.

python -m examples.prepbn [--network vit|swin] [--to prepbn --to un] [--output out]  (from the root of the clone)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import normfold
from examples import accuracy, shapes

MODELS = Path(__file__).parent / "models"
VIT = MODELS / "vit_shapes.safetensors"
# name -> weights, factory
NETWORKS = {
    "vit": (VIT, "examples.nets:vit_tiny_shapes"),
    "swin": (MODELS / "swin_shapes.safetensors", "examples.swin:swin_shapes"),
}
NORMS = ("LayerNormalization", "RMSNormalization", "BatchNormalization")


@dataclass(frozen=True)
class Row:
    """One student: kind of norm, norm ops in its ONNX file, top-1 in percent of the original in PyTorch and of the
    file in onnxruntime, on the test images; samples, optimizer steps and seconds of the training."""

    to: str
    norms: int
    before: float
    after: float
    samples: int
    steps: int
    seconds: float


def training_images(count: int = shapes.TRAIN_IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels that the networks were trained on; the labels are used for the report alone."""
    images, labels = shapes.train_set(count)
    return torch.from_numpy(images), torch.from_numpy(labels)


def student(
    to: str,
    output: Path,
    samples: int = shapes.TRAIN_IMAGES,
    training: normfold.Train | None = None,
    images: int = shapes.TEST_IMAGES,
    network: str = "vit",
) -> Row:
    """Convert a network into `output` and evaluate the file on the first `images` test images."""
    path, factory = NETWORKS[network]
    result = normfold.convert(
        path,
        to,
        factory=factory,
        output=output,
        data=training_images(samples),
        training=training,
        progress=_say,
    )
    _say("")
    report = result.report.training
    if not result.ok or report is None:
        raise SystemExit(f"{to}: the verdict failed")
    return Row(
        to,
        sum(result.report.census.get(name, 0) for name in NORMS),
        100 * accuracy.top1(accuracy.torch_predictor(accuracy.load(path)), images),
        100 * accuracy.top1(accuracy.onnx_predictor(output / f"{path.stem}.onnx"), images),
        report.samples,
        report.steps,
        report.seconds,
    )


def _say(progress: normfold.Progress | str) -> None:
    """One moving line on a terminal, nothing elsewhere."""
    line = str(progress)
    if sys.stderr.isatty():
        print(f"\r{line:100}", end="\r" if not line else "", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A shipped transformer without LayerNorms.")
    parser.add_argument("--network", choices=NETWORKS, default="vit")
    parser.add_argument("--to", action="append", help="kinds of norms; default: prepbn and un")
    parser.add_argument("--output", type=Path, default=Path("out/prepbn"))
    parser.add_argument("--samples", type=int, default=shapes.TRAIN_IMAGES)
    parser.add_argument("--steps", type=int, help="default: four epochs")
    arguments = parser.parse_args()
    for to in arguments.to or ["prepbn", "un"]:
        training = normfold.Train(steps=arguments.steps)
        row = student(
            to, arguments.output / to, arguments.samples, training, network=arguments.network
        )
        print(
            f"{row.to:8} norm ops {row.norms}; test accuracy {row.before:.2f} % -> {row.after:.2f} %; "
            f"{row.steps} steps on {row.samples} images in {row.seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
