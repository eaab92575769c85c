"""What the report says of the machine: memory, and versions of what the result depends on."""

from __future__ import annotations

import resource
import sys
from importlib.metadata import PackageNotFoundError, version


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
