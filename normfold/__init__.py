"""normfold: fold, convert and prove the normalisation layers of trained PyTorch networks.

graph = normfold.capture(module, args)
graph, report = normfold.run(graph, "canonicalize,fold-affine,restore,bake")
result = normfold.convert("model.pt", to="folded", export="onnx", output="out/")
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m` puts the current folder first: a file in it would stand in for a library
    sys.path.append(sys.path.pop(0))

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.api import capture, layers, run, verify
    from normfold.conversion import Result, execute
    from normfold.faults import bisect
    from normfold.generated import convert
    from normfold.inspection import inspect, plan
    from normfold.ir import Graph
    from normfold.job import EngineOptions, Job, Quantize, Train
    from normfold.judge.bench import bench
    from normfold.progress import Progress
    from normfold.report import Report
    from normfold.rewrite import Pass, Reason
    from normfold.train import finalize, refresh_statistics, replace_norms
    from normfold.tuning import tune

__version__ = "0.1.0"

# imported on first use, so that the command line answers without torch
_HOMES = {
    "EngineOptions": "normfold.job",
    "Graph": "normfold.ir",
    "Job": "normfold.job",
    "Pass": "normfold.rewrite",
    "Progress": "normfold.progress",
    "Quantize": "normfold.job",
    "Reason": "normfold.rewrite",
    "Report": "normfold.report",
    "Result": "normfold.conversion",
    "Train": "normfold.job",
    "bench": "normfold.judge.bench",
    "bisect": "normfold.faults",
    "layers": "normfold.api",
    "capture": "normfold.api",
    "convert": "normfold.generated",
    "execute": "normfold.conversion",
    "finalize": "normfold.train",
    "inspect": "normfold.inspection",
    "plan": "normfold.inspection",
    "refresh_statistics": "normfold.train",
    "replace_norms": "normfold.train",
    "run": "normfold.api",
    "tune": "normfold.tuning",
    "verify": "normfold.api",
}

__all__ = [
    "EngineOptions",
    "Graph",
    "Job",
    "Pass",
    "Progress",
    "Quantize",
    "Reason",
    "Report",
    "Result",
    "Train",
    "bench",
    "bisect",
    "capture",
    "convert",
    "execute",
    "finalize",
    "inspect",
    "layers",
    "plan",
    "refresh_statistics",
    "replace_norms",
    "run",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `normfold` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
