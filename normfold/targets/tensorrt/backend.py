"""The builders: TensorRT on a machine with a GPU, TensorRT-RTX on any."""

from __future__ import annotations

import ctypes
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from normfold.errors import EnvironmentMissing, UsageError
from normfold.job import EngineOptions
from normfold.target import TARGETS, Target

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_OLDEST = (10, 12)  # the first TensorRT whose strong typing covers what is emitted here
# what TensorRT and its trtexec call the levels of hardware compatibility
LEVELS = {
    "ampere+": ("AMPERE_PLUS", "ampere+"),
    "same-cc": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
_NATIVE_RMS_NORM = (10, 15)
AMPERE = 80


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device: its name and compute capability, as ``sm89``."""

    name: str
    arch: str


@cache
def probe() -> Gpu | str:
    """The GPU that engines can run on, or why there is none.

    The driver is asked, since torch may be a build without CUDA.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not there"
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver does not start (CUDA error {status})"
    if cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU"
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(value.value)
    cuda.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), f"sm{parts[0]}{parts[1]}")


def gpu() -> Gpu | None:
    """The GPU that engines can run on, if there is one."""
    found = probe()
    return found if isinstance(found, Gpu) else None


class Backend(ABC):
    """One installed builder. Both libraries share an API; what differs is here."""

    name: ClassVar[str]
    module_name: ClassVar[str]
    hint: ClassVar[str]

    def __init__(self, module: Any) -> None:
        self.trt = module
        self.version = str(module.__version__)

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers."""
        return release(self.version)

    @property
    @abstractmethod
    def target(self) -> Target:
        """What the parser of this version wants of an ONNX file."""

    @abstractmethod
    def lacks(self) -> EnvironmentMissing | None:
        """What stands in the way of building on this machine."""

    def architectures(self) -> list[str]:
        """Compute capabilities that can be asked for, as ``sm89``; none where it is the GPU's that counts."""
        return []

    @abstractmethod
    def check(self, options: EngineOptions) -> None:
        """Refuse options that this builder has not.

        Raises:
            UsageError: which one, and what there is instead.
        """

    @abstractmethod
    def restricted(self, options: EngineOptions, least: int) -> EngineOptions:
        """The options for GPUs of a compute capability from ``least`` on.

        Raises:
            UsageError: a GPU that is asked for, or that is the only one here, is older.
        """

    @abstractmethod
    def network_flags(self) -> int:
        """Flags that make a network strongly typed."""

    @abstractmethod
    def configure(self, config: Any, options: EngineOptions) -> None:
        """Set targets, compatibility and caches."""

    @abstractmethod
    def targets(self, options: EngineOptions) -> tuple[str, ...]:
        """Compute capabilities that an engine is for."""

    @abstractmethod
    def built(self, config: Any, options: EngineOptions) -> None:
        """Called with the configuration after a build: keeps the timing cache."""


class TensorRT(Backend):
    """Enterprise TensorRT 10.12 or newer: kernels are timed on the GPU."""

    name = "tensorrt"
    module_name = "tensorrt"
    hint = "`pip install tensorrt` on a machine with an NVIDIA GPU"

    @property
    def target(self) -> Target:
        native = self.release >= _NATIVE_RMS_NORM
        return replace(TARGETS["trt"], rms_opset=23) if native else TARGETS["trt"]

    def lacks(self) -> EnvironmentMissing | None:
        if self.release < _OLDEST:
            return EnvironmentMissing(
                f"TensorRT {self.version} is too old",
                hint="engines are strongly typed: 10.12 or newer is needed",
            )
        found = probe()
        if not isinstance(found, Gpu):
            return EnvironmentMissing(
                "TensorRT times its kernels on a GPU, and there is none",
                found=found,
                hint="TensorRT-RTX builds without one: `pip install tensorrt-rtx`",
            )
        return None

    def check(self, options: EngineOptions) -> None:
        if options.gpu_arch:
            raise UsageError(
                "TensorRT builds for the GPU of this machine",
                found=f"--gpu-arch {','.join(options.gpu_arch)}",
                hint="`--hardware-compatible ampere+` widens it, or `--builder tensorrt-rtx`",
            )
        cache = options.timing_cache
        if cache is not None and cache.exists() and not cache.is_dir():
            raise UsageError("`--timing-cache` names a folder", found=f"`{cache}` is a file")

    def restricted(self, options: EngineOptions, least: int) -> EngineOptions:
        device = gpu()
        if device is not None and capability(device.arch) < least:
            raise too_old(device.arch, least)
        return options

    def network_flags(self) -> int:
        if self.release[0] >= 11:  # networks are always strongly typed
            return 0
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def configure(self, config: Any, options: EngineOptions) -> None:
        trt = self.trt
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible != "none":
            level = LEVELS[options.hardware_compatible][0]
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if options.timing_cache is not None:
            path = self._cache_path(options)
            blob = path.read_bytes() if path.is_file() else b""
            timing_cache = config.create_timing_cache(blob)
            if timing_cache is None:  # damaged: it is made anew
                timing_cache = config.create_timing_cache(b"")
            config.set_timing_cache(timing_cache, ignore_mismatch=False)

    def built(self, config: Any, options: EngineOptions) -> None:
        if options.timing_cache is not None:
            path = self._cache_path(options)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
            temporary.replace(path)

    def targets(self, options: EngineOptions) -> tuple[str, ...]:
        device = gpu()
        return (device.arch,) if device else ()

    def _cache_path(self, options: EngineOptions) -> Path:
        """A cache of another version or GPU is useless at best: the name tells both."""
        assert options.timing_cache is not None
        device = gpu()
        arch = device.arch if device else "none"
        return options.timing_cache / f"tensorrt-{self.version}-{arch}.cache"


class TensorRTRTX(Backend):
    """TensorRT-RTX: engines are built ahead of time on a CPU, and finished where they run."""

    name = "tensorrt-rtx"
    module_name = "tensorrt_rtx"
    hint = "`pip install tensorrt-rtx` (or `'normfold[trt-rtx]'`): it builds without a GPU"

    @property
    def target(self) -> Target:
        return TARGETS["trt-rtx"]

    def lacks(self) -> EnvironmentMissing | None:
        return None

    def check(self, options: EngineOptions) -> None:
        for asked, name, instead in (
            (options.version_compatible, "--version-compatible", "build again for a newer version"),
            (
                options.hardware_compatible != "none",
                "--hardware-compatible",
                "`--gpu-arch sm89,sm120` names the GPUs",
            ),
            (options.timing_cache is not None, "--timing-cache", "it times nothing before it runs"),
        ):
            if asked:
                raise UsageError("TensorRT-RTX has no such option", found=name, hint=instead)
        known = self.architectures()
        for arch in options.gpu_arch:
            if arch not in known:
                raise UsageError(
                    f"TensorRT-RTX {self.version} does not build for `{arch}`",
                    hint=f"it builds for {', '.join(known)}",
                )

    def restricted(self, options: EngineOptions, least: int) -> EngineOptions:
        if old := [arch for arch in options.gpu_arch if capability(arch) < least]:
            raise too_old(old[0], least)
        new = tuple(arch for arch in self.architectures() if capability(arch) >= least)
        return options if options.gpu_arch else replace(options, gpu_arch=new)

    def architectures(self) -> list[str]:
        names = [name for name in dir(self.trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
        return sorted((name.lower() for name in names), key=capability)

    def network_flags(self) -> int:
        return 0

    def configure(self, config: Any, options: EngineOptions) -> None:
        config.num_compute_capabilities = len(options.gpu_arch)
        for index, arch in enumerate(options.gpu_arch):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, arch.upper()), index)

    def targets(self, options: EngineOptions) -> tuple[str, ...]:
        if options.gpu_arch:
            return options.gpu_arch
        return tuple(arch for arch in self.architectures() if capability(arch) >= AMPERE)

    def built(self, config: Any, options: EngineOptions) -> None:
        """There is no timing cache."""


_KINDS: Sequence[type[Backend]] = (TensorRT, TensorRTRTX)


@dataclass(frozen=True)
class Candidate:
    """A builder, as far as it is installed, and what it lacks here."""

    kind: type[Backend]
    backend: Backend | None
    lacks: EnvironmentMissing | None


def candidates() -> list[Candidate]:
    """Every builder, in the order in which they are taken."""
    found = []
    for kind in _KINDS:
        backend = _load(kind)
        missing = EnvironmentMissing(f"`{kind.module_name}` is not installed", hint=kind.hint)
        found.append(Candidate(kind, backend, backend.lacks() if backend else missing))
    return found


def find(wanted: str = "auto") -> Backend:
    """The builder to use: the one that is named, or else TensorRT where it can build, or else TensorRT-RTX.

    Raises:
        EnvironmentMissing: not installed, too old, or without the GPU that it needs.
        UsageError: there is no builder of this name.
    """
    names = [kind.name for kind in _KINDS]
    if wanted not in ("auto", *names):
        raise UsageError(f"there is no builder `{wanted}`", hint=f"auto, {', '.join(names)}")
    there = [item for item in candidates() if wanted in ("auto", item.kind.name)]
    for item in there:
        if item.backend is not None and item.lacks is None:
            return item.backend
    lacking = [item.lacks for item in there if item.lacks is not None]
    if wanted != "auto":
        raise lacking[0]
    best = TensorRT if gpu() is not None else TensorRTRTX
    raise EnvironmentMissing(
        "there is no builder of TensorRT engines here",
        found="; ".join(error.what for error in lacking),
        hint=best.hint,
    )


def release(version: str) -> tuple[int, ...]:
    """``10.12.0.36`` as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def capability(arch: str) -> int:
    """``sm89`` as 89."""
    return int(arch.removeprefix("sm"))


def too_old(arch: str, least: int) -> UsageError:
    """The error for a GPU without kernels for what is asked for."""
    return UsageError(
        f"GPUs before sm{least} have no kernels for 8-bit floats",
        found=arch,
        hint=f"`--gpu-arch sm{least}` or newer, or `--quantize int8`",
    )


def _load(kind: type[Backend]) -> Backend | None:
    try:
        module = importlib.import_module(kind.module_name)
    except (ImportError, OSError):  # absent, or without its libraries
        return None
    # lean and dispatch runtimes have no builder
    return kind(module) if hasattr(module, "Builder") else None
