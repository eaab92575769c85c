"""TensorRT engines from strongly typed ONNX files, by whichever builder is installed."""

from normfold.targets.tensorrt.backend import Backend, Gpu, candidates, find, gpu, probe
from normfold.targets.tensorrt.builder import Built, build
from normfold.targets.tensorrt.profiles import Range, parse_dynamic

__all__ = [
    "Backend",
    "Built",
    "Gpu",
    "Range",
    "build",
    "candidates",
    "find",
    "gpu",
    "parse_dynamic",
    "probe",
]
