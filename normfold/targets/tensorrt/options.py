"""What may be asked of an engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from normfold.errors import UsageError

BackendName = Literal["auto", "tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]
# what TensorRT and its trtexec call the levels
LEVELS = {
    "ampere+": ("AMPERE_PLUS", "ampere+"),
    "same-cc": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
_MOST_MIB = 1 << 24  # 16 TiB


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        backend: ``auto`` takes ``tensorrt`` where it is installed and there is a GPU, else ``tensorrt-rtx``.
        gpu_arch: compute capabilities that a TensorRT-RTX engine is for, as ``sm89``; none means every one from
            Ampere on that the library knows. TensorRT builds for the GPU that is there.
        workspace: memory in MiB that tactics may use; by default what the library takes.
        timing_cache: folder of TensorRT's timing caches, one file for each version and compute capability.
        version_compatible: the engine also runs in newer TensorRT versions (not TensorRT-RTX).
        hardware_compatible: GPUs besides the one that it is built on: none, all from Ampere on, or those of the
            same compute capability (not TensorRT-RTX, which has ``gpu_arch``).

    Raises:
        UsageError: a value that no builder takes.
    """

    backend: BackendName = "auto"
    gpu_arch: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"

    def __post_init__(self) -> None:
        archs = tuple(dict.fromkeys(arch.lower() for arch in self.gpu_arch))
        object.__setattr__(self, "gpu_arch", archs)
        for arch in archs:
            if not re.fullmatch(r"sm\d+", arch):
                raise UsageError(
                    f"`{arch}` is no compute capability", hint="write it as `--gpu-arch sm89,sm120`"
                )
        for value, kind, name in (
            (self.backend, BackendName, "builder"),
            (self.hardware_compatible, HardwareCompatibility, "hardware compatibility"),
        ):
            if value not in get_args(kind):
                raise UsageError(f"there is no {name} `{value}`", hint=", ".join(get_args(kind)))
        if self.workspace is not None and not 1 <= self.workspace <= _MOST_MIB:
            raise UsageError(f"a workspace of {self.workspace} MiB", hint=f"1 to {_MOST_MIB} MiB")

    def flags(self) -> tuple[str, ...]:
        """What was asked for, as on the command line; the builder and the cache do not change an engine."""
        flags = [f"--gpu-arch {','.join(self.gpu_arch)}"] if self.gpu_arch else []
        if self.workspace is not None:
            flags.append(f"--workspace {self.workspace}")
        if self.version_compatible:
            flags.append("--version-compatible")
        if self.hardware_compatible != "none":
            flags.append(f"--hardware-compatible {self.hardware_compatible}")
        return tuple(flags)
