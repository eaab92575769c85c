"""Networks with gains of 0: folded, and with `prune-dead-channels`: size and time in onnxruntime, certificate.

python -m benchmarks.pruned [--network resnet18 ...] [--share 0.3] [--seconds 5]

Random weights; a share of the gains of each BatchNorm is exactly 0, as training with a penalty on gains leaves
them (network slimming), and so are their biases with ``--zeros``. Both files are made as users make them, and are
timed in turn on one thread.
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
from benchmarks.models import make

FOLDED = "canonicalize,fold-affine,restore,bake"
PRUNED = "canonicalize,fold-affine,prune-dead-channels,restore,bake"


def network(name: str, share: float, zeros: bool) -> nn.Module:
    """With random weights and statistics, and gains of 0."""
    made = make(name)
    with torch.no_grad():
        for module in made.modules():
            norm: Any = module
            if isinstance(module, nn.BatchNorm2d):
                dead = torch.randperm(len(norm.weight))[: round(share * len(norm.weight))]
                norm.weight[dead] = 0
                if zeros:
                    norm.bias[dead] = 0
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["resnet18", "mobilenetv2_100"])
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--zeros", action="store_true", help="biases of 0 there, too")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    print("| network | folded, MB | pruned, MB | features | time of folded | certificate |")
    print("|---|---|---|---|---|---|")
    for name in options.network:
        net = network(name, options.share, options.zeros)
        example = (torch.randn(1, 3, options.side, options.side),)
        files = {}
        with tempfile.TemporaryDirectory() as place:
            for way, passes in (("folded", FOLDED), ("pruned", PRUNED)):
                result = normfold.convert(
                    net, inputs=example, passes=passes, output=Path(place), name=way
                )
                if not result.ok:
                    raise SystemExit(f"{name}, {way}: {result.report.artefacts}")
                files[way] = Path(place) / f"{way}.onnx"
            report = result.report
            pruning = next(item for item in report.passes if item.name == "prune-dead-channels")
            counts = [item.detail.split(" of ") for item in pruning.applied]
            gone = sum(int(part[0]) for part in counts)
            whole = sum(int(part[1].split()[0]) for part in counts)
            timing = normfold.bench(
                files["folded"], files["pruned"], threads=1, seconds=options.seconds
            )
            sizes = [files[way].stat().st_size / 1e6 for way in ("folded", "pruned")]
        low, high = timing.interval
        state = report.certificates()[-1].state
        print(
            f"| {name} | {sizes[0]:.2f} | {sizes[1]:.2f} | {gone} of {whole} | {timing.ratio:.2f} "
            f"({low:.2f} to {high:.2f}) | {state} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
