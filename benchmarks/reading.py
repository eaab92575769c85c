"""What safe reading costs: a whole pickled network by normfold and by a bare `torch.load`, and the confinement.

python -m benchmarks.reading [--network vit|tiny] [--rounds 7]

Reads in turn, in one process, from a warm file cache; median seconds. `torch.load` runs what the file says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from normfold.load import pickled
from normfold.load.trust import Trust

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # as many blocks, tensors and bytes as a ViT-B: 340 MB
    "vit": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(768, 12, 3072), 12),
    "tiny": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
}
_CONFINE = """
import time
from normfold.job import confinement
start = time.perf_counter()
print(confinement.confine([]), "|", time.perf_counter() - start)
"""


def main(arguments: list[str] | None = None) -> None:
    """Print both medians, their ratio, and what confining a process takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading")
    parser.add_argument("--network", choices=NETWORKS, default="vit")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torch.save(NETWORKS[asked.network]().eval(), path)
        ways = {
            "torch.load": lambda: torch.load(path, weights_only=False),
            "normfold": lambda: pickled.read(path, Trust()),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.rounds + 1):  # the first one fills the cache
            for name, read in ways.items():
                start = time.perf_counter()
                read()
                times[name].append(time.perf_counter() - start)
        size = path.stat().st_size / 1e6
    found = {name: median(values[1:]) for name, values in times.items()}
    for name, seconds in found.items():
        print(f"{name:12} {seconds:.3f} s for {size:.0f} MB")
    print(f"ratio        {found['normfold'] / found['torch.load']:.2f}")
    ran = subprocess.run(
        [sys.executable, "-c", _CONFINE], capture_output=True, text=True, check=True
    )
    what, _, seconds = ran.stdout.strip().rpartition(" | ")
    print(f"confinement  {1000 * float(seconds):.1f} ms ({what})")


if __name__ == "__main__":
    main()
