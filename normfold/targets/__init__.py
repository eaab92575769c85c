"""Writing what was rewritten: ONNX for several runtimes, .pt2, and running the result again."""

from normfold.targets.census import Census, PerChannel, census
from normfold.targets.dialects import DIALECTS, Dialect, dialect
from normfold.targets.onnx import Exported, export_onnx
from normfold.targets.pt2 import export_pt2
from normfold.targets.runtime import RuntimeSession, run_onnx

__all__ = [
    "DIALECTS",
    "Census",
    "Dialect",
    "Exported",
    "PerChannel",
    "RuntimeSession",
    "census",
    "dialect",
    "export_onnx",
    "export_pt2",
    "run_onnx",
]
