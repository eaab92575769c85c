"""Where a network runs: one row per target, as data. Who needs to know reads the row.

Grids and kernels: the selectors of onnxruntime's QDQ transformer (read off the files that it makes), TensorRT's
rules for explicit quantisation. `tests/targets/test_integers_zoo.py` holds every claim against the runtime itself.
"""

from __future__ import annotations

import difflib
import importlib
import platform
from dataclasses import dataclass
from typing import Any

from normfold.errors import UsageError

NEVER = 1 << 10
SCHEMES = ("int8", "int8-dynamic", "int8-weights", "int4-weights")


@dataclass(frozen=True)
class Grids:
    """How the integer kernels of a runtime take a quantised network.

    Attributes:
        dtype: of activations, by torch's name.
        symmetric: zero points are 0, so that a ReLU's output has 7 bits.
        outputs: integer kernels give integers: a grid behind every op. Otherwise an op's input is on a grid, its
            output is not, and of a sum with an op's output the other side is.
        kernels: classes of ops without weights (`normfold.ops.table.Integers`) that run in integers between those
            with weights. Moves take any grid as it is; these compute. Relu and clamps go into the grid of what
            they read.
        pairs: on x86 without VNNI its kernels sum two products in 16 bits (vpmaddubsw), which saturate; all others
            sum in 32.
        integer_bias: linear ops whose result stays in floats need an integer bias.
        schemes: what it has kernels for.
        by_layer: it runs formats that differ by layer.
    """

    dtype: str
    symmetric: bool
    outputs: bool
    kernels: frozenset[str] = frozenset()
    pairs: bool = False
    integer_bias: bool = False
    schemes: tuple[str, ...] = SCHEMES
    by_layer: bool = True

    def limits(self, bits: int = 8) -> tuple[int, int]:
        """The integers of a grid of ``bits``."""
        if self.dtype == "uint8":
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def grid(self, low: float, high: float, bits: int = 8) -> tuple[float, int]:
        """Scale and zero point for values from ``low`` to ``high``; zero has a step of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        first, last = self.limits(bits)
        if self.symmetric:
            return max(-low, high) / last or 1.0, 0
        scale = (high - low) / (last - first) or 1.0
        return scale, round(first - low / scale)


@dataclass(frozen=True)
class Target:
    """One place where a file runs.

    Attributes:
        name: of the option ``--target``.
        formats: file formats that it takes; the first is written when none is asked for.
        description, wants: in words, for the documentation.
        opset: the default of its ONNX files; ``rms_opset`` that for a graph with RMS norms: 23 has a native
            RMSNormalization, below that the exporter writes mean-of-squares primitives. From ``attention_opset``
            on attention is one Attention op, below it plain ops.
        grids: None where it takes no integers.
        runs: ``module:function``, called with a path: yields (name, run) for each way in which the file is judged
            here, and raises `EnvironmentMissing` where it cannot be run.
        builder: of its engines, by package; empty where files need none.
        stands_in: ``runs`` is another runtime, for ONNX files; what is built from them is judged by its writer.
        floats: types that it has fast kernels for: files are written in the type of the stored weights where it is
            among them, otherwise in float32.
        packs: it has com.microsoft's ops for tables of few bits.
        processors: machines (`platform.machine`) that it runs on; every one when empty.
        runtime: the name of the runtime in sentences.
    """

    name: str
    formats: tuple[str, ...]
    description: str
    wants: str
    runtime: str
    runs: str
    opset: int = 20
    rms_opset: int = 23
    attention_opset: int = 23
    grids: Grids | None = None
    builder: str = ""
    stands_in: bool = False
    floats: tuple[str, ...] = ("float32", "float16", "bfloat16")
    packs: bool = False
    processors: tuple[str, ...] = ()

    def cannot_run(self) -> str:
        """Why files for it are not run on this machine by its processor; empty if they are."""
        here = platform.machine().lower()
        if not self.processors or here in self.processors:
            return ""
        return f"this processor is {here}, the file is for {self.processors[0]}"

    @property
    def times_here(self) -> bool:
        """True if its ONNX files run in the onnxruntime of this machine, which can time and count them."""
        return self.runtime == "onnxruntime" and not self.cannot_run()

    def runner(self) -> Any:
        """The function that ``runs`` names."""
        module, _, name = self.runs.partition(":")
        return getattr(importlib.import_module(module), name)


# QLinearAdd, QLinearMul, those that look up a byte, QLinearAveragePool and its global form, MaxPool on integers
_ORT_KERNELS = frozenset({"sum", "product", "table", "average", "maximum"})
_ORT = "normfold.targets.runtime:runs"
_TENSORRT = Grids("int8", True, False, schemes=("int8",), by_layer=False)
_ATTENTION = "attention as plain ops"
_EVERY_FLOAT = ("float64", "float32", "float16", "bfloat16")

TARGETS = {
    row.name: row
    for row in (
        Target(
            "ort-x86",
            ("onnx",),
            "onnxruntime on x86-64 CPUs (1.23 or newer for RMSNormalization)",
            "native LayerNormalization and RMSNormalization, one Gelu op (20), dynamic batch",
            "onnxruntime",
            _ORT,
            grids=Grids("uint8", False, True, _ORT_KERNELS, pairs=True, integer_bias=True),
            floats=("float32",),
            packs=True,
        ),
        Target(
            "ort-arm",
            ("onnx",),
            "onnxruntime on Arm CPUs (1.23 or newer for RMSNormalization)",
            "as ort-x86; activations on signed grids",
            "onnxruntime",
            _ORT,
            grids=Grids("int8", False, True, _ORT_KERNELS, integer_bias=True),
            floats=("float32",),
            packs=True,
            processors=("aarch64", "arm64"),
        ),
        Target(
            "openvino",
            ("onnx", "openvino"),
            "OpenVINO 2025 or newer on CPUs, from ONNX files or its own IR",
            f"LayerNormalization native; {_ATTENTION}",
            "OpenVINO",
            "normfold.targets.openvino:runs",
            rms_opset=20,
            attention_opset=NEVER,
            grids=Grids(
                "uint8", False, False, pairs=True, schemes=("int8", "int8-weights", "int4-weights")
            ),
            floats=("float32",),
        ),
        Target(
            "trt",
            ("onnx", "trt"),
            "TensorRT 10.12 or newer, strongly typed",
            "LayerNormalization native; RMSNormalization from TensorRT 10.15 on (known when an engine is built), "
            f"else as primitives in float32; {_ATTENTION}, which it fuses itself",
            "TensorRT",
            _ORT,
            rms_opset=20,
            attention_opset=NEVER,
            grids=_TENSORRT,
            builder="tensorrt",
            stands_in=True,
        ),
        Target(
            "trt-rtx",
            ("onnx", "trt"),
            "TensorRT-RTX 1.x",
            f"LayerNormalization and RMSNormalization native; {_ATTENTION}: an Attention op in float32 parses and "
            "does not build",
            "TensorRT-RTX",
            _ORT,
            attention_opset=NEVER,
            grids=_TENSORRT,
            builder="tensorrt-rtx",
            stands_in=True,
        ),
        Target(
            "pt2",
            ("pt2",),
            "torch.export programs, run by PyTorch",
            "functional ATen ops (dialect `ATEN`); RMS norms as primitives",
            "PyTorch",
            "normfold.targets.pt2:runs",
            floats=_EVERY_FLOAT,
        ),
        Target(
            "module",
            ("module",),
            "the original PyTorch module, with a state dict and a file that applies it",
            "the state dict under the original's names; `NAME_apply.py` changes modules and loads it",
            "PyTorch",
            "normfold.targets.module:runs",
            floats=_EVERY_FLOAT,
        ),
    )
}
# file format -> the target that is meant when none is named
DEFAULTS = {
    "onnx": "ort-x86",
    "openvino": "openvino",
    "pt2": "pt2",
    "module": "module",
    "trt": "trt",
}


GRIDDED = tuple(name for name, row in TARGETS.items() if row.grids is not None)


def grids_of(name: str) -> Grids:
    """The grids of a target.

    Raises:
        UsageError: an unknown target, or one without integers.
    """
    grids = target(name).grids
    if grids is None:
        raise UsageError(f"`{name}` takes no integers", hint=f"these do: {', '.join(GRIDDED)}")
    return grids


def target(name: str) -> Target:
    """The row of a target.

    Raises:
        UsageError: there is no such target; the message names the nearest one.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name.lower(), TARGETS, n=1, cutoff=0.4)
    raise UsageError(
        f"there is no target `{name}`",
        hint=(f"did you mean `{near[0]}`? " if near else "") + f"known: {', '.join(TARGETS)}",
    )
