"""Convert the shipped ResNet-20 and show that it classifies the test set as before: what `make demo` runs.

python -m examples.demo [--output out]        (from the root of the clone)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import normfold
from examples.accuracy import load, onnx_predictor, top1, torch_predictor

MODEL = Path("examples/models/resnet20.pt")


def main() -> None:
    """Run the command line on the model, then count right answers of both networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    command = ["convert", str(MODEL), "--trust-module", "examples", "--export", "onnx"]
    command += ["-o", str(arguments.output)]
    print(f"$ normfold {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "normfold", *command], check=True)

    original = load(MODEL)
    graph = normfold.capture(original, (torch.randn(2, 3, 32, 32),))
    before = sum(norm.kind == "batch-norm" for norm in normfold.inspect(graph))
    written = arguments.output / "resnet20.onnx"
    old = top1(torch_predictor(original), arguments.images)
    new = top1(onnx_predictor(written), arguments.images)
    print(f"\n{'':24}{'original (torch)':>20}{'converted (onnx)':>20}")
    print(f"{'batch norms':24}{before:>20}{_batch_norms(written):>20}")
    print(f"{'test accuracy, top-1':24}{old:>20.2%}{new:>20.2%}")


def _batch_norms(path: Path) -> int:
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "BatchNormalization" for node in nodes)


if __name__ == "__main__":
    main()
