"""Writing what was rewritten: ONNX for several runtimes, .pt2, and running the result again."""

from normfold.export.census import Census, PerChannel, census
from normfold.export.dialects import DIALECTS, Dialect, dialect
from normfold.export.onnx import Exported, export_onnx
from normfold.export.pt2 import export_pt2
from normfold.export.runtime import RuntimeSession, run_onnx

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
