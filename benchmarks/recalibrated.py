"""Statistics taken anew on corrupted images: accuracy of the shipped ResNet-20 before, after, and as folded files.

python -m benchmarks.recalibrated [--samples 256] [--severity 1.0] [--corruption blur ...] [--way adabn ...]

Statistics come from corrupted training images without labels, accuracy from corrupted test images. *before* is the
file of the network as it is, *after* the recalibrated network in torch with its BatchNorms, *folded* its file in
onnxruntime.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import normfold
from examples import accuracy, shapes
from examples.prepbn import MODELS
from normfold.job import Recalibrate
from normfold.train.recalibrate import recalibrated

NETWORK = "resnet20.pt"
WAYS: dict[str, dict[str, Any]] = {
    "adabn": {"recalibrate": "adabn"},
    "alpha 0.5": {"recalibrate": "alpha", "source_weight": 0.5},
    "alpha 0.9": {"recalibrate": "alpha", "source_weight": 0.9},
    "prior 16": {"recalibrate": "prior", "source_samples": 16},
    "mean alone": {"recalibrate": "adabn", "recalibrate_part": "mean"},
    "variance alone": {"recalibrate": "adabn", "recalibrate_part": "variance"},
}


def corruptions(severity: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of images (N, 3, H, W), normalised as the network reads them."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return x + 0.5 * severity * torch.randn(x.shape, generator=generator)

    def blur(x: Tensor) -> Tensor:
        soft = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
        return x + severity * (soft - x)

    def contrast(x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) / (1 + 2 * severity)

    return {"none": lambda x: x, "noise": noise, "blur": blur, "contrast": contrast}


def top1(predict: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> float:
    """Percent."""
    with torch.no_grad():
        found = [torch.as_tensor(predict(part)) for part in images.split(200)]
    return 100 * float((torch.cat(found).argmax(1) == labels).double().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--severity", type=float, default=1.0)
    parser.add_argument("--tests", type=int, default=2000, help="images")
    parser.add_argument(
        "--corruption", nargs="+", choices=corruptions(1), default=list(corruptions(1))
    )
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args(arguments)
    train = torch.from_numpy(shapes.train_set(options.samples)[0])
    test, labels = map(torch.from_numpy, shapes.test_set(options.tests))
    network = accuracy.load(MODELS / NETWORK)
    print("| corruption | statistics | before | after | folded |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name in options.corruption:
            corrupt = corruptions(options.severity)[name]
            seen, unseen = corrupt(train), corrupt(test)
            before = top1(_file(network, Path(place)), unseen, labels)
            for way in options.way:
                given = WAYS[way]
                step = Recalibrate(
                    method=given["recalibrate"],
                    source_weight=given.get("source_weight", 0.9),
                    source_samples=given.get("source_samples", 16),
                    moments=given.get("recalibrate_part", "both"),
                )
                graph = normfold.capture(network, (seen[:2],))
                changed, _ = recalibrated(graph, [(part,) for part in seen.split(64)], step)
                after = top1(changed.module, unseen, labels)
                folded = top1(_file(network, Path(place), data=seen, **given), unseen, labels)
                row = f"{before:.2f} | {after:.2f} | {folded:.2f}"
                print(f"| {name} | {way} | {row} |", flush=True)


def _file(network: Any, folder: Path, **given: Any) -> Callable[[Tensor], Any]:
    """What a file answers that is made as users make it."""
    example = (torch.randn(2, 3, 32, 32),)
    result = normfold.convert(network, inputs=example, output=folder, name="net", **given)
    if not result.ok:
        raise SystemExit(f"not right: {result.report.artefacts}")
    predict = accuracy.onnx_predictor(folder / "net.onnx")
    return lambda images: predict(images.numpy())


if __name__ == "__main__":
    main()
