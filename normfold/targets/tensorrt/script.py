"""For another machine: a script that builds the engine with TensorRT, and the same as a trtexec line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from string import Template

from normfold.job import EngineOptions
from normfold.targets.tensorrt.backend import LEVELS
from normfold.targets.tensorrt.profiles import Shapes
from normfold.targets.tensorrt.sidecar import Sidecar

_SCRIPT = Template('''\
#!/usr/bin/env python3
"""Build $engine from $onnx: run it beside the ONNX file, with nothing but TensorRT installed.

TensorRT (10.12 or newer) needs the GPU that the engine is for; TensorRT-RTX needs none.
"""

import ctypes
import hashlib
import importlib
import json
import pathlib
import sys

MODULES = $modules
ONNX, ENGINE = $onnx, $engine
PROFILE = $profile
WORKSPACE_MIB = $workspace
GPU_ARCH = $gpu_arch  # of TensorRT-RTX
SIDECAR = json.loads(r"""
$sidecar""")


def gpu():
    """Name and compute capability of the GPU that kernels are timed on."""
    cuda, name, value = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(256), ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGetName(name, len(name), 0)
    parts = []
    for attribute in (75, 76):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        parts.append(str(value.value))
    return name.value.decode(errors="replace"), "sm" + "".join(parts)


for module in MODULES:
    try:
        trt = importlib.import_module(module)
        break
    except (ImportError, OSError):
        continue
else:
    sys.exit(f"not installed: {' or '.join(MODULES)}")
rtx = module == "tensorrt_rtx"
version = tuple(int(part) for part in trt.__version__.split(".")[:2])
if not rtx and version < (10, 12):
    sys.exit(f"TensorRT {trt.__version__} is too old: 10.12 or newer is needed")

folder = pathlib.Path(__file__).resolve().parent
builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
typed = 0
if not rtx and version < (11,):  # later networks, and those of TensorRT-RTX, are always strongly typed
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
network = builder.create_network(typed)
parser = trt.OnnxParser(network, builder.logger)
if not parser.parse_from_file(str(folder / ONNX)):
    sys.exit("\\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
if WORKSPACE_MIB is not None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
if rtx:
    config.num_compute_capabilities = len(GPU_ARCH)
    for index, arch in enumerate(GPU_ARCH):
        config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), index)
${configure}if PROFILE:
    shapes = builder.create_optimization_profile()
    for name, (least, usual, most) in PROFILE.items():
        shapes.set_shape(name, least, usual, most)
    config.add_optimization_profile(shapes)
plan = builder.build_serialized_network(network, config)
if plan is None:
    sys.exit("the engine could not be built")

if rtx:  # by default it builds for every GPU that it knows from Ampere on
    known = [name.lower() for name in dir(trt.ComputeCapability) if name[2:].isdigit()]
    device, targets = None, GPU_ARCH or [arch for arch in known if int(arch[2:]) >= 80]
else:
    device, arch = gpu()
    targets = [arch]
sidecar, data = folder / (ENGINE + ".json"), bytes(plan)
sidecar.unlink(missing_ok=True)  # never beside another engine than its own
(folder / ENGINE).write_bytes(data)
SIDECAR.update(
    builder="tensorrt-rtx" if rtx else "tensorrt",
    version=trt.__version__,
    gpu=device,
    targets=targets,
    sha256=hashlib.sha256(data).hexdigest(),
    onnx_sha256=hashlib.sha256((folder / ONNX).read_bytes()).hexdigest(),
)
sidecar.write_text(json.dumps(SIDECAR, indent=2) + "\\n")
print(folder / ENGINE)
''')


def build_script(engine: str, sidecar: Sidecar, options: EngineOptions) -> str:
    """A Python program of one file that needs nothing but TensorRT; it writes the engine and its sidecar.

    Args:
        sidecar: what is known before the build.
    """
    shapes = "".join(f"    {name!r}: {sizes!r},\n" for name, sizes in sidecar.profile.items())
    configure = ""
    if options.version_compatible:
        configure += "config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)\n"
    if options.hardware_compatible != "none":
        level = LEVELS[options.hardware_compatible][0]
        configure += (
            f"config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.{level}\n"
        )
    return _SCRIPT.substitute(
        modules=_modules(options),
        onnx=repr(sidecar.onnx),
        engine=repr(engine),
        profile=f"{{\n{shapes}}}" if shapes else "{}",
        workspace=options.workspace,
        gpu_arch=list(options.gpu_arch),
        configure=configure,
        sidecar=sidecar.to_json(),
    )


def _modules(options: EngineOptions) -> list[str]:
    """What may build: some options are of one library only."""
    if options.backend == "tensorrt-rtx" or options.gpu_arch:
        return ["tensorrt_rtx"]
    only = options.version_compatible or options.hardware_compatible != "none"
    if options.backend == "tensorrt" or only:
        return ["tensorrt"]
    return ["tensorrt", "tensorrt_rtx"]


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
        parts.append(f"--hardwareCompatibilityLevel={LEVELS[options.hardware_compatible][1]}")
    return shlex.join(parts)
