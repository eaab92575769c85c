"""What the report says of the machine: memory, and versions of what the result depends on."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Versions of what the result depends on, for the report."""
    found = {"python": sys.version.split()[0]}
    for package in ("normfold", "torch", "onnx", "onnxscript", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Model and usable cores of the processor: ``Intel(R) Xeon(R) Platinum 8481C, 2 cores``."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = (line.partition(":") for line in described.read_text().splitlines())
        name = next((text.strip() for key, _, text in lines if key.strip() == "model name"), name)
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    return f"{name}, {cores} cores"
