"""normfold: fold, convert and prove the normalisation layers of trained PyTorch networks.

graph = normfold.capture(module, args)
graph, report = normfold.run(graph, "canonicalize,fold-affine,restore,bake")
result = normfold.convert("model.pt", to="folded", export="onnx", output="out/")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.api import bisect, capture, run, verify
    from normfold.conversion import Result, convert
    from normfold.graph import Graph
    from normfold.inspection import inspect, plan
    from normfold.report import Report
    from normfold.rewrite import Pass, Reason
    from normfold.train import finalize, refresh_statistics, replace_norms

__version__ = "0.1.0"

# imported on first use, so that the command line answers without torch
_HOMES = {
    "Graph": "normfold.graph",
    "Pass": "normfold.rewrite",
    "Reason": "normfold.rewrite",
    "Report": "normfold.report",
    "Result": "normfold.conversion",
    "bisect": "normfold.api",
    "capture": "normfold.api",
    "convert": "normfold.conversion",
    "finalize": "normfold.train",
    "inspect": "normfold.inspection",
    "plan": "normfold.inspection",
    "refresh_statistics": "normfold.train",
    "replace_norms": "normfold.train",
    "run": "normfold.api",
    "verify": "normfold.api",
}

__all__ = [
    "Graph",
    "Pass",
    "Reason",
    "Report",
    "Result",
    "bisect",
    "capture",
    "convert",
    "finalize",
    "inspect",
    "plan",
    "refresh_statistics",
    "replace_norms",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `normfold` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
