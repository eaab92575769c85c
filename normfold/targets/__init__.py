"""Writing what was rewritten for a target, and running the written file again."""

from normfold.targets.census import Census, PerChannel, census
from normfold.targets.onnx import Exported, export_onnx
from normfold.targets.pt2 import export_pt2
from normfold.targets.runtime import RuntimeSession, run_onnx

__all__ = [
    "Census",
    "Exported",
    "PerChannel",
    "RuntimeSession",
    "census",
    "export_onnx",
    "export_pt2",
    "run_onnx",
]
