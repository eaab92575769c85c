"""For another machine: a script that builds the engine with TensorRT, and the same as a trtexec line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from normfold.export.tensorrt.options import EngineOptions
from normfold.export.tensorrt.profiles import Shapes

_SCRIPT = '''\
#!/usr/bin/env python3
"""Build {engine} from {onnx}: run it beside the ONNX file, where TensorRT 10.12 or newer and a GPU are."""

import pathlib
import sys

ONNX, ENGINE = {onnx!r}, {engine!r}
PROFILE = {profile}
WORKSPACE_MIB = {workspace!r}

try:
    import tensorrt as trt
except ImportError:
    try:
        import tensorrt_rtx as trt
    except ImportError:
        sys.exit("neither tensorrt nor tensorrt_rtx is installed: pip install tensorrt")

folder = pathlib.Path(__file__).resolve().parent
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
flags = 0
if trt.__name__ == "tensorrt" and int(trt.__version__.split(".")[0]) < 11:
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # always so since 11
network = builder.create_network(flags)
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(str(folder / ONNX)):
    sys.exit("\\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
if WORKSPACE_MIB is not None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
{configure}if PROFILE:
    shapes = builder.create_optimization_profile()
    for name, (least, usual, most) in PROFILE.items():
        shapes.set_shape(name, least, usual, most)
    config.add_optimization_profile(shapes)
plan = builder.build_serialized_network(network, config)
if plan is None:
    sys.exit("the engine could not be built")
(folder / ENGINE).write_bytes(plan)
print(folder / ENGINE)
'''


def build_script(
    onnx: str, engine: str, profile: Mapping[str, Shapes], options: EngineOptions
) -> str:
    """A Python program of one file that needs nothing but TensorRT."""
    shapes = "".join(f"    {name!r}: {sizes!r},\n" for name, sizes in profile.items())
    configure = ""
    if options.version_compatible:
        configure += "config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)\n"
    if options.hardware_compatible != "none":
        level = _LEVELS[options.hardware_compatible][0]
        configure += (
            f"config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.{level}\n"
        )
    return _SCRIPT.format(
        onnx=onnx,
        engine=engine,
        profile=f"{{\n{shapes}}}" if shapes else "{}",
        workspace=options.workspace,
        configure=configure,
    )


_LEVELS = {
    "ampere+": ("AMPERE_PLUS", "ampere+"),
    "same-cc": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}


def trtexec(onnx: str, engine: str, profile: Mapping[str, Shapes], options: EngineOptions) -> str:
    """The command line of TensorRT's own tool that builds the same engine."""
    parts = ["trtexec", f"--onnx={onnx}", "--stronglyTyped", f"--saveEngine={engine}"]
    for index, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = [f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in profile.items()]
        if shapes:
            parts.append(f"--{flag}={','.join(shapes)}")
    if options.workspace is not None:
        parts.append(f"--memPoolSize=workspace:{options.workspace}M")
    if options.version_compatible:
        parts.append("--versionCompatible")
    if options.hardware_compatible != "none":
        parts.append(f"--hardwareCompatibilityLevel={_LEVELS[options.hardware_compatible][1]}")
    return shlex.join(parts)
