"""What safe reading costs: a whole pickled network by normfold and by a bare `torch.load`, and the confinement.

python -m benchmarks.reading [--network vit|tiny] [--rounds 7]

Each read is the first large one of a process of its own, from a warm file cache: a second one would find the
memory of the first. Median seconds, in turn. `torch.load` runs what the file says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # as many blocks, tensors and bytes as a ViT-B: 340 MB
    "vit": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(768, 12, 3072), 12),
    "tiny": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
}
WAYS = {
    "torch.load": "lambda path: torch.load(path, weights_only=False)",
    "normfold": "lambda path: pickled.read(path, Trust())",
}
_READ = """
import sys, time, torch
from pathlib import Path
from normfold.load import pickled
from normfold.load.trust import Trust
small, large = map(Path, sys.argv[1:])
read = {way}
read(small)
start = time.perf_counter()
read(large)
print(time.perf_counter() - start)
"""
_CONFINE = """
import time
from normfold.job import confinement
start = time.perf_counter()
confinement.confine([])
print(time.perf_counter() - start)
"""


def main(arguments: list[str] | None = None) -> None:
    """Print both medians, their ratio, and what confining a process takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading")
    parser.add_argument("--network", choices=NETWORKS, default="vit")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(arguments)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "small.pt", Path(folder) / "network.pt"
        torch.save(NETWORKS["tiny"]().eval(), paths[0])
        torch.save(NETWORKS[asked.network]().eval(), paths[1])
        size = paths[1].stat().st_size / 1e6
        for _ in range(asked.rounds):
            for name, way in WAYS.items():
                times[name].append(_seconds(_READ.format(way=way), *map(str, paths)))
    found = {name: median(values) for name, values in times.items()}
    for name, seconds in found.items():
        print(f"{name:12} {seconds:.3f} s for {size:.0f} MB")
    print(f"ratio        {found['normfold'] / found['torch.load']:.2f}")
    print(f"confinement  {1000 * _seconds(_CONFINE):.1f} ms")


def _seconds(code: str, *arguments: str) -> float:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ran.stdout)


if __name__ == "__main__":
    main()
