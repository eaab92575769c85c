"""What may be asked of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BackendName = Literal["auto", "tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        backend: ``auto`` takes ``tensorrt`` where it is installed and there is a GPU, else ``tensorrt-rtx``.
        gpu_arch: compute capabilities that a TensorRT-RTX engine is for, as ``sm89``; none means every one that
            the library builds for by itself. TensorRT builds for the GPU that is there.
        workspace: memory in MiB that tactics may use; by default what the library takes.
        timing_cache: folder of TensorRT's timing caches, one file for each version and compute capability.
        version_compatible: the engine also runs in newer TensorRT versions (not TensorRT-RTX).
        hardware_compatible: GPUs besides the one that it is built on: none, all from Ampere on, or those of the
            same compute capability (not TensorRT-RTX, which has ``gpu_arch``).
    """

    backend: BackendName = "auto"
    gpu_arch: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"
