"""What a norm, an explicit centring op and a left-over bias cost, in onnxruntime: center-stream's weights.

python -m benchmarks.norm_costs [--rows 197] [--width 768] [--depth 24] [--threads 1] [--seconds 5] [--rounds 20]

Chains of equal ops are timed in turn, each against a chain of LayerNorms with gain and bias; the figures are
ratios of medians with the 95 % interval of the ratio.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import normfold
from normfold.judge.bench import bench
from normfold.targets.onnx import export_onnx


class Chain(nn.Module):
    """``depth`` times the same function, a ReLU between, which keeps a runtime from merging them."""

    def __init__(self, step: Callable[[Chain, Tensor], Tensor], width: int, depth: int) -> None:
        super().__init__()
        self.step, self.width, self.depth = step, width, depth
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N,T,width) to the same shape."""
        for _ in range(self.depth):
            x = torch.relu(self.step(self, x))
        return x


CHAINS: dict[str, Callable[[Chain, Tensor], Tensor]] = {
    "layer norm, gain and bias": lambda net, x: nn.functional.layer_norm(
        x, [net.width], net.gain, net.bias
    ),
    "layer norm, bare": lambda net, x: nn.functional.layer_norm(x, [net.width]),
    "rms norm, bare": lambda net, x: nn.functional.rms_norm(x, [net.width], None, 1e-5),
    "rms norm, gain": lambda net, x: nn.functional.rms_norm(x, [net.width], net.gain, 1e-5),
    "rms norm, gain, bias added": lambda net, x: (
        nn.functional.rms_norm(x, [net.width], net.gain, 1e-5) + net.bias
    ),
    "centring op": lambda net, x: x - x.mean(-1, keepdim=True),
    "addition of a bias": lambda net, x: x + net.bias,
    "nothing": lambda net, x: x,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=197)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=24, help="ops in a chain")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    parser.add_argument("--rounds", type=int, default=20, help="for each comparison, at least")
    options = parser.parse_args(arguments)
    x = torch.randn(1, options.rows, options.width)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index, step in enumerate(CHAINS.values()):
            graph = normfold.capture(Chain(step, options.width, options.depth), (x,), dynamic=None)
            files.append(Path(folder) / f"{index}.onnx")
            baked, _ = normfold.run(graph, "canonicalize,restore,bake", verify="off")
            export_onnx(baked, files[-1])
        print(f"{'chain':28}{'ms':>8}{'ratio':>8}   95 % interval")
        for name, file in zip(CHAINS, files, strict=True):
            limits = {"seconds": options.seconds, "rounds": options.rounds}
            found = bench(files[0], file, threads=options.threads, **limits)
            low, high = found.interval
            time = 1e3 * found.b_seconds
            print(f"{name:28}{time:8.2f}{found.ratio:8.3f}   {low:.3f} to {high:.3f}", flush=True)


if __name__ == "__main__":
    main()
