"""LayerNorm to RMSNorm on the two shipped transformers, with accuracy and perplexity before and after.

python -m examples.rmsnorm [--output out]        (from the root of the clone)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import normfold
from examples import accuracy, gpt, shapes, text
from normfold.job.presets import preset
from normfold.targets.census import census
from normfold.targets.onnx import export_onnx

MODELS = Path(__file__).parent / "models"
PRESET = "rmsnorm"
VIT = MODELS / "vit_shapes.safetensors"
LENGTHS = (1, 37, 128)


@dataclass(frozen=True)
class Row:
    """One converted model: norms in the graph before, ops in the ONNX file after, the metric before and after.

    `before` is of the original in PyTorch, `after` of the ONNX file in onnxruntime.
    """

    model: str
    layer_norms: int
    left: int
    rms_norms: int
    centrings: int
    metric: str
    before: float
    after: float


def vit(output: Path, images: int = shapes.TEST_IMAGES) -> Row:
    """Convert the ViT into `output`; top-1 in percent on the first `images` test images."""
    result = normfold.convert(
        VIT, to=PRESET, factory="examples.nets:vit_tiny_shapes", output=output
    )
    before = accuracy.top1(accuracy.torch_predictor(accuracy.load(VIT)), images)
    after = accuracy.top1(accuracy.onnx_predictor(output / "vit_shapes.onnx"), images)
    return _row("ViT", result, "top-1 in percent", 100 * before, 100 * after)


def gpt_stdlib(output: Path, count: int = text.WINDOWS) -> Row:
    """Convert the GPT into `output` at its full context; perplexity on `count` windows."""
    result = normfold.convert(
        gpt.MODEL,
        to=PRESET,
        factory="examples.gpt:gpt_stdlib",
        inputs=[f"ids:2x{text.CONTEXT}:i64"],
        output=output,
    )
    before = text.perplexity(gpt.torch_predictor(gpt.load()), count)
    after = text.perplexity(gpt.onnx_predictor(output / "gpt_stdlib.onnx"), count)
    return _row("GPT", result, "perplexity per character", before, after)


def any_length(path: Path, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Convert the GPT with a dynamic length too and write it to `path`.

    Returns for each length the largest error of the file in onnxruntime, relative to the largest logit of
    the original at that length.
    """
    original = gpt.load()
    ids = torch.from_numpy(text.windows(text.validation_set(), count=3)[0])
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=text.CONTEXT)}
    graph = normfold.capture(original, (ids[:2, :64],), dynamic={"ids": axes})
    graph, report = normfold.run(graph, preset(PRESET))
    if not report.ok:
        raise SystemExit("the verdict failed")
    export_onnx(graph, path)
    torch_gpt, onnx_gpt = gpt.torch_predictor(original), gpt.onnx_predictor(path)
    errors = {}
    for length in lengths:
        part = ids[:, :length].numpy()
        expected = torch_gpt(part)
        errors[length] = float(np.abs(onnx_gpt(part) - expected).max() / np.abs(expected).max())
    return errors


def main() -> None:
    """Convert both models and print what became of their norms and of what they predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--images", type=int, default=shapes.TEST_IMAGES)
    parser.add_argument("--windows", type=int, default=text.WINDOWS)
    arguments = parser.parse_args()
    rows = [
        vit(arguments.output, arguments.images),
        gpt_stdlib(arguments.output, arguments.windows),
    ]
    print(
        f"{'':5}{'LayerNorms':^18}{'RMSNorms':>10}{'centring':>10}{'metric':>26}{'torch':>10}{'onnx':>10}"
    )
    for row in rows:
        norms = f"{row.layer_norms} -> {row.left}"
        print(
            f"{row.model:5}{norms:^18}{row.rms_norms:>10}{row.centrings:>10}"
            f"{row.metric:>26}{row.before:>10.4f}{row.after:>10.4f}"
        )
    print("GPT with a dynamic length, largest relative error in onnxruntime:")
    for length, error in any_length(arguments.output / "gpt_stdlib.any_length.onnx").items():
        print(f"  {length:3} characters  {error:.1e}")


def _row(model: str, result: normfold.Result, metric: str, before: float, after: float) -> Row:
    if not result.ok:
        raise SystemExit(f"{model}: the verdict failed")
    (path,) = (item for item in result.artifacts if item.suffix == ".onnx")
    counts = census(path)
    return Row(
        model,
        layer_norms=sum(site.kind == "layer-norm" for site in result.report.sites),
        left=counts.norms.get("LayerNormalization", 0),
        rms_norms=counts.norms.get("RMSNormalization", 0),
        centrings=counts.ops.get("ReduceMean", 0),  # neither network has a mean of its own
        metric=metric,
        before=before,
        after=after,
    )


if __name__ == "__main__":
    main()
