"""A training step with the norms folded (`normfold.tune`) against eval mode: memory and time.

python -m benchmarks.tuning [--network resnet50] [--side 128] [--batch 8] [--steps 5]

Each way in a process of its own: the least time of a step (forward, backward, SGD) of ``--steps`` behind a first
one, what the forward pass keeps for the backward one, weights left out, and the process's peak memory above what
it took before the first step. Also how far the gradients are apart, in float64.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import normfold
from benchmarks.models import make

WAYS = ("eval", "tune")


def kept(network: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass leaves: what the backward one needs, and the result."""
    network(x)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = network(x)
    del result
    return sum(event.self_cpu_memory_usage for event in profile.events())


def one(options: argparse.Namespace) -> None:
    """Print seconds of a step, bytes kept, and peak bytes of a way."""
    net = make(options.network)
    x = torch.randn(options.batch, 3, options.side, options.side)
    trained = normfold.tune(net, (x[:2],)) if options.way == "tune" else net
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)
    for parameter in net.parameters():  # both ways have gradients
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what capturing took goes back
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, times = _memory("VmRSS"), []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        trained(x).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    peak = _memory("VmHWM") - before
    print(min(times[1:]), kept(trained, x), peak)


def apart(name: str, side: int) -> float:
    """The largest difference of gradients in float64, relative to the largest number of each."""
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    grads = []
    for way in WAYS:
        net = make(name).double()
        run = normfold.tune(net, (x,)) if way == "tune" else net
        run(x).square().mean().backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*grads, strict=True))


def _memory(name: str) -> int:
    """Bytes, as Linux says them of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        one(options)
        return
    print("| mode | step, s | kept for the backward pass, MB | peak, MB |\n|---|---|---|---|")
    given = [f"--{key}={vars(options)[key]}" for key in ("network", "side", "batch", "steps")]
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.tuning", *given, f"--way={way}"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        step, saved, peak = map(float, ran.stdout.split())
        print(f"| {way} | {step:.3f} | {saved / 1e6:.0f} | {peak / 1e6:.0f} |", flush=True)
    print(f"\nGradients apart in float64: {apart(options.network, options.side):.1e}")


if __name__ == "__main__":
    main()
