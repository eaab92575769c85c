"""TensorRT engines from strongly typed ONNX files, by whichever builder is installed."""

from normfold.export.tensorrt.backend import Backend, Gpu, candidates, find, gpu, probe
from normfold.export.tensorrt.builder import Built, build
from normfold.export.tensorrt.options import EngineOptions
from normfold.export.tensorrt.profiles import Range, parse_dynamic

__all__ = [
    "Backend",
    "Built",
    "EngineOptions",
    "Gpu",
    "Range",
    "build",
    "candidates",
    "find",
    "gpu",
    "parse_dynamic",
    "probe",
]
