"""The file beside an engine: what it was built from, by what, for what."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.targets.order import sha256
from normfold.targets.tensorrt.backend import AMPERE, capability, release
from normfold.targets.tensorrt.profiles import Shapes

SCHEMA = 1


@dataclass(frozen=True)
class Sidecar:
    """What ``<engine>.json`` holds.

    Attributes:
        builder, version: ``tensorrt`` or ``tensorrt-rtx``, and its version.
        gpu: the GPU that kernels were timed on, if any.
        targets: compute capabilities that the engine is for; ``flags`` may widen them.
        flags: what was asked of the builder, as on the command line.
        sha256, onnx_sha256: of the engine and of the ONNX file that it was built from.
        precision: the type that weights and activations were lowered to, or ``as captured``.
        bindings: name, kind, dtype and shape of inputs and outputs.
        profile: least, usual and largest shape of each input with a dynamic axis.
        layers: how many layers have which type.
        input_normalisation: mean and standard deviation that the model expects inputs to be normalised by.
    """

    builder: str = ""
    version: str = ""
    gpu: str | None = None
    targets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    sha256: str = ""
    onnx: str = ""
    onnx_sha256: str = ""
    precision: str = ""
    bindings: tuple[dict[str, Any], ...] = ()
    profile: dict[str, Shapes] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    input_normalisation: dict[str, Any] | None = None
    normfold: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def path_of(engine: Path) -> Path:
        """Where the sidecar of an engine lies."""
        return engine.with_name(f"{engine.name}.json")

    @classmethod
    def read(cls, engine: Path) -> Sidecar:
        """The sidecar of an engine.

        Raises:
            UsageError: there is none, or it is not readable as one.
        """
        path = cls.path_of(engine)
        try:
            data = json.loads(path.read_text())
            known = {item.name for item in dataclasses.fields(cls)}
            for name in ("targets", "flags", "bindings"):  # JSON has no tuples
                data[name] = tuple(data[name])
            shapes = data["profile"].items()
            data["profile"] = {name: tuple(map(tuple, sizes)) for name, sizes in shapes}
            sidecar = cls(**{name: value for name, value in data.items() if name in known})
            texts = (*sidecar.targets, *sidecar.flags, sidecar.builder, sidecar.version)
            if sidecar.schema != SCHEMA or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"not of schema {SCHEMA}")
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise UsageError(
                "the engine has no readable sidecar",
                where=str(path),
                found=str(error)[:200],
                hint="`normfold convert ... --export trt` writes both",
            ) from error
        return sidecar

    def fits(self, arch: str) -> bool:
        """Is the engine for GPUs of this compute capability?"""
        wide = "--hardware-compatible ampere+" in self.flags and capability(arch) >= AMPERE
        return arch in self.targets or wide

    def check(self, engine: Path, version: str, arch: str) -> None:
        """Is the engine whole, and made for this version and GPU? Asked before it is deserialised.

        Raises:
            UsageError: what does not fit.
        """
        try:
            found = sha256(engine)
        except OSError as error:
            raise UsageError(
                "the engine cannot be read", where=str(engine), found=str(error)
            ) from error
        if found != self.sha256:
            raise UsageError(
                "the engine is not the one that its sidecar describes",
                where=str(engine),
                found="another sha256",
                hint="build it again",
            )
        portable = "--version-compatible" in self.flags and release(version) > release(self.version)
        if version != self.version and not portable:
            raise UsageError(
                f"the engine was built by {self.builder} {self.version}",
                where=str(engine),
                found=f"{self.builder} {version} is installed",
                hint="build it again; with `--version-compatible` (TensorRT) newer versions run it too",
            )
        if not self.fits(arch):
            raise UsageError(
                f"the engine was built for {', '.join(self.targets)}",
                where=str(engine),
                found=f"this GPU is {arch}",
                hint="build it here, or with `--gpu-arch` (TensorRT-RTX) or `--hardware-compatible` (TensorRT)",
            )
