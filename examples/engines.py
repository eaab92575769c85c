"""TensorRT engines of the four shipped networks in three precisions, with accuracy and perplexity.

python -m examples.engines [--output out]        (from the root of the clone; needs tensorrt-rtx or tensorrt)

The engines are built, and run where there is a GPU for them. The metric is of the network as it was typed, with
every step of every norm rounded to its type.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import normfold
from examples import accuracy, gpt, shapes, text
from normfold.domains import half
from normfold.ir.evaluation import Evaluator

MODELS = Path(__file__).parent / "models"
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Shipped:
    """A shipped network and how it is converted."""

    file: str
    to: str
    options: dict[str, Any]


SHIPPED = {
    "ResNet-20": Shipped("resnet20.pt", "folded", {"trust_modules": ["examples"]}),
    "MobileNetV2": Shipped("mobilenet_v2_small.pt", "folded", {"trust_modules": ["examples"]}),
    "ViT": Shipped(
        "vit_shapes.safetensors", "rmsnorm", {"factory": "examples.nets:vit_tiny_shapes"}
    ),
    "GPT": Shipped(
        "gpt_stdlib.safetensors",
        "rmsnorm",
        {"factory": "examples.gpt:gpt_stdlib", "inputs": [f"ids:2x{text.CONTEXT}:i64"]},
    ),
}


@dataclass(frozen=True)
class Row:
    """One engine: its size and build time, ops left in float32, and the metric of the typed network."""

    model: str
    precision: str
    megabytes: float
    seconds: float
    islands: int
    metric: float


class Strict(nn.Module):
    """A typed network whose norms round every step."""

    def __init__(self, graph: normfold.Graph) -> None:
        super().__init__()
        self._run = Evaluator(graph.module, half.Strict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whatever the network takes to its first output."""
        first: torch.Tensor = self._run(x)[0]
        return first


def build(
    name: str,
    precision: Precision,
    output: Path,
    images: int = shapes.TEST_IMAGES,
    windows: int = text.WINDOWS,
) -> Row:
    """Build one engine into `output`; top-1 in percent, or perplexity per character."""
    shipped = SHIPPED[name]
    result = normfold.convert(
        MODELS / shipped.file,
        shipped.to,
        export="trt",
        precision=precision,
        output=output / precision,
        **shipped.options,
    )
    if not result.ok:
        raise SystemExit(f"{name} in {precision}: the verdict failed")
    strict, report = Strict(result.graph), result.report
    if name == "GPT":
        metric = text.perplexity(gpt.torch_predictor(strict), windows)
    else:
        metric = 100 * accuracy.top1(accuracy.torch_predictor(strict), images)
    assert report.engine is not None
    islands = report.ranges[0].islands if report.ranges else ()
    return Row(
        name, precision, report.engine.size / 1e6, report.engine.seconds, len(islands), metric
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Build all engines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--model", nargs="+", choices=list(SHIPPED), default=list(SHIPPED))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--images", type=int, default=shapes.TEST_IMAGES)
    parser.add_argument("--windows", type=int, default=text.WINDOWS)
    options = parser.parse_args(arguments)
    print(f"{'':13}{'':10}{'MB':>8}{'build s':>9}{'in fp32':>9}{'metric':>10}")
    for name in options.model:
        for precision in options.precision:
            row = build(name, precision, options.output, options.images, options.windows)
            print(
                f"{row.model:13}{row.precision:10}{row.megabytes:8.2f}{row.seconds:9.1f}"
                f"{row.islands:9}{row.metric:10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
