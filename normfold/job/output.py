"""What comes out: formats, targets, and how engines are built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from normfold.errors import UsageError
from normfold.job.option import Options, given_options, option
from normfold.target import DEFAULTS, TARGETS, Target, target

Format = Literal["onnx", "pt2", "trt", "openvino", "module"]
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]
_TARGETS = ", ".join(TARGETS)


@dataclass(frozen=True)
class Request:
    """One file to write: its format and the row of the target that it is for."""

    format: str
    target: Target


@dataclass(frozen=True)
class Export(Options):
    """Formats to write, the targets that they are for, and the folder."""

    GROUP: ClassVar[str] = "What comes out"

    export: tuple[Format, ...] = option(
        ("onnx",), "Format to write; repeatable.", metavar="onnx|pt2|trt|openvino|module"
    )
    target: tuple[str, ...] = option(
        (),
        f"Where the files run: {_TARGETS}; repeatable.",
        metavar="NAME",
        default_text="the format's own: ort-x86 for onnx; for trt the builder that is installed",
    )
    opset: int | None = option(
        None, "ONNX opset.", when="onnx-file", default_text="the target's own"
    )
    name: str | None = option(
        None, "Name of the files, without suffix.", metavar="TEXT", default_text="that of the model"
    )
    input_names: tuple[str, ...] = option(
        (),
        "Names of the inputs in ONNX files, in order, as `image,mask`.",
        metavar="NAME,...",
        when="onnx-file",
        default_text="those of `forward`",
    )
    output_names: tuple[str, ...] = option(
        (),
        "Names of the outputs in ONNX files, in order, as `boxes,scores`.",
        metavar="NAME,...",
        when="onnx-file",
        default_text="keys, fields and places of what `forward` returns",
    )
    output: Path = option(
        Path("out"), "Folder for the files and the report.", "--output", "-o", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option_name in ("input_names", "output_names"):
            names = tuple(
                part.strip() for text in getattr(self, option_name) for part in text.split(",")
            )
            object.__setattr__(self, option_name, names)
            _require_names(names, f"--{option_name.replace('_', '-')}")
        if self.name is not None:
            _require_file_name(self.name)

    @property
    def requests(self) -> tuple[Request, ...]:
        """What to write: each format for the named targets that take it, else for its own.

        Raises:
            UsageError: an unknown target, or one that takes none of the formats.
        """
        named = [target(name) for name in self.target]
        found: list[Request] = []
        for kind in sorted(self.export, key=list(DEFAULTS).index):
            fitting = [row for row in named if kind in row.formats]
            rows = fitting or [target(DEFAULTS[kind])]
            found += [Request(kind, row) for row in rows]
        unused = [row for row in named if all(item.target is not row for item in found)]
        if unused and self.export:
            raise UsageError(
                f"`{unused[0].name}` takes none of the formats",
                found=f"export {', '.join(self.export)}",
                hint=f"it takes {', '.join(f'`--export {kind}`' for kind in unused[0].formats)}",
            )
        return tuple(dict.fromkeys(found))

    @property
    def first(self) -> Target:
        """The target whose numbers the resulting graph has."""
        requests = self.requests
        return requests[0].target if requests else target((*self.target, "ort-x86")[0])


def _require_names(names: tuple[str, ...], flag: str) -> None:
    """Refuse empty, unprintable and repeated names."""
    bad = next((name for name in names if not name or not name.isprintable()), None)
    if bad is not None:
        raise UsageError(f"`{flag}`: {bad!r} is not a name", hint="names are separated by commas")
    if len(set(names)) < len(names):
        raise UsageError(f"`{flag}`: a name is given twice", found=", ".join(names))


def _require_file_name(name: str) -> None:
    bad = name in (".", "..") or "/" in name or not name.isprintable() or not name.strip()
    if bad or len(name.encode()) > 200:
        raise UsageError(
            "`--name` is not the name of a file",
            found=repr(name)[:80],
            hint="the folder is `--output`",
        )


@dataclass(frozen=True)
class EngineOptions(Options):
    """How an engine is built.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``; ``auto`` takes the former where it is installed and there is a
            GPU. ``--target trt-rtx`` and ``--target trt`` choose it.
        gpu_arch: compute capabilities; TensorRT itself builds for the GPU that is there.

    Raises:
        UsageError: a value that no builder takes.
    """

    GROUP: ClassVar[str] = "TensorRT engines (--export trt)"
    WHEN: ClassVar[str] = "engine"

    gpu_arch: tuple[str, ...] = option(
        (),
        "GPUs that a TensorRT-RTX engine is for, as `sm89,sm120`.",
        metavar="SM,...",
        default_text="every one from Ampere on",
    )
    workspace: int | None = option(
        None, "Memory that tactics may use.", metavar="MIB", low=1, high=1 << 24
    )
    timing_cache: Path | None = option(
        None, "Keep TensorRT's timings there, by version and GPU.", metavar="FOLDER"
    )
    version_compatible: bool = option(False, "The engine runs in newer TensorRT versions too.")
    hardware_compatible: HardwareCompatibility = option(
        "none", "The engine runs on other GPUs too."
    )
    backend: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = [part.strip().lower() for text in self.gpu_arch for part in text.split(",")]
        archs = tuple(dict.fromkeys(part for part in parts if part))
        object.__setattr__(self, "gpu_arch", archs)
        for arch in archs:
            if not re.fullmatch(r"sm\d+", arch):
                raise UsageError(
                    f"`{arch}` is not a compute capability",
                    hint="write it as `--gpu-arch sm89,sm120`",
                )

    def flags(self) -> tuple[str, ...]:
        """What was asked for, as on the command line; the builder and the cache do not change an engine."""
        found = []
        for item, value in given_options(self):
            text = ",".join(value) if item.many else str(value)
            if item.name != "timing_cache":
                found.append(item.flags[0] if item.kind == "bool" else f"{item.flags[0]} {text}")
        return tuple(found)
