"""Where a network runs: one row per target, as data. Who needs to know reads the row.

Grids and kernels: the selectors of onnxruntime's QDQ transformer (read off the files that it makes), TensorRT's
rules for explicit quantisation. `tests/targets/test_integers_zoo.py` holds every claim against the runtime itself.
"""

from __future__ import annotations

import difflib
import importlib
import math
import platform
from dataclasses import dataclass, replace
from typing import Any, Literal

from normfold.errors import UsageError

NEVER = 1 << 10
E4M3_TOP = 448  # the largest float of 8 bits
_HEADROOM = 2  # ranges are estimates, and room beyond them costs floats nothing (docs/integers.md)
SCHEMES = ("int8", "int8-dynamic", "int8-weights", "int4-weights", "lossless", "fp8")
RANGED = ("int8", "fp8")  # activations are on grids whose ranges are found beforehand


def power_of_two(largest: float, top: int = E4M3_TOP) -> float:
    """The least power of two that brings ``largest`` to ``top`` or below; 1 where there is nothing but zeros.

    Steps of a grid of floats are relative, so that rounding a scale up costs none of their precision; and to
    divide by a power of two is exact in every type, so that every runtime rounds to the same step. None is below
    2^-24, the least that half precision holds.
    """
    if not largest > 0:
        return 1.0
    return max(2.0 ** math.ceil(math.log2(largest / top)), 2.0**-24)


@dataclass(frozen=True)
class Grids:
    """How the kernels for few bits of a runtime take a quantised network.

    Attributes:
        dtype: of activations, by torch's name: integers, or floats of 8 bits.
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
        packed: it has onnxruntime's own product of floats with weights of 2, 4 or 8 bits, which keeps the floats;
            others unpack such weights from 4 or 8 bits.
        sums: the other side of a sum with an op's output is on a grid too.
        multiple: a layer's inputs and outputs, per group, must be multiples of it.
        window: elements of the largest window of a convolution; 0 where no convolution has a kernel.
        capability: the least compute capability of a GPU that has the kernels.
        attention: what is known against them in networks with attention.
    """

    dtype: str
    symmetric: bool
    outputs: bool
    kernels: frozenset[str] = frozenset()
    pairs: bool = False
    integer_bias: bool = False
    schemes: tuple[str, ...] = ("int8", "int8-dynamic", "int8-weights", "int4-weights", "lossless")
    by_layer: bool = True
    packed: bool = False
    sums: bool = True
    multiple: int = 1
    window: int = NEVER
    capability: int = 0
    attention: str = ""

    @property
    def rounding(self) -> Literal["nearest", "e4m3"]:
        """How values are rounded to steps."""
        return "e4m3" if self.dtype.startswith("float8") else "nearest"

    def limits(self, bits: int = 8) -> tuple[int, int]:
        """The first and the last step of a grid of ``bits``."""
        if self.rounding == "e4m3":
            return -E4M3_TOP, E4M3_TOP
        if self.dtype == "uint8":
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def grid(self, low: float, high: float, bits: int = 8) -> tuple[float, int]:
        """Scale and zero point for values from ``low`` to ``high``; zero has a step of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        first, last = self.limits(bits)
        if self.rounding == "e4m3":
            return power_of_two(_HEADROOM * max(-low, high), last), 0
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
        grids: None where it takes no integers; ``float_grids`` those of floats of 8 bits, where it has them.
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
    float_grids: Grids | None = None
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
    def kinds(self) -> tuple[str, ...]:
        """The kinds of grids that it has, by their names in passes."""
        rows = {"integers": self.grids, "e4m3": self.float_grids}
        return tuple(kind for kind, row in rows.items() if row is not None)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of quantisation that it has kernels for."""
        rows = (row for row in (self.grids, self.float_grids) if row is not None)
        return tuple(scheme for row in rows for scheme in row.schemes)

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
_TENSORRT = Grids(
    "int8",
    True,
    False,
    schemes=("int8",),
    by_layer=False,
    attention="8-bit integers in float32 networks have run ViT-L at half the speed of float16 (131.8 and 65.6 ms "
    "on a T4, NVIDIA/Model-Optimizer#167): compare with `--quantize fp8` or `--precision fp16` before deployment",
)
# channels and windows: what NVIDIA's own quantiser leaves out, as kernels are missing or slower (Model-Optimizer)
_TENSORRT_FLOATS = Grids(
    "float8_e4m3fn",
    True,
    False,
    schemes=("fp8",),
    by_layer=False,
    sums=False,
    multiple=16,
    window=32,
    capability=89,
)
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
            grids=Grids(
                "uint8", False, True, _ORT_KERNELS, pairs=True, integer_bias=True, packed=True
            ),
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
            grids=Grids("int8", False, True, _ORT_KERNELS, integer_bias=True, packed=True),
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
                "uint8",
                False,
                False,
                pairs=True,
                schemes=("int8", "int8-weights", "int4-weights", "lossless"),
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
            float_grids=_TENSORRT_FLOATS,
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
            float_grids=replace(
                _TENSORRT_FLOATS, window=0
            ),  # "only supported for matrix multiplications"
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


def grids_of(name: str, kind: Literal["integers", "e4m3"] = "integers") -> Grids:
    """The grids of a target: those of integers, or of floats of 8 bits.

    Raises:
        UsageError: an unknown target, or one without such grids.
    """
    row = target(name)
    grids = row.grids if kind == "integers" else row.float_grids
    if grids is None:
        what = "integers" if kind == "integers" else "floats of 8 bits"
        rows = [x.name for x in TARGETS.values() if kind in x.kinds]
        raise UsageError(f"`{name}` takes no {what}", hint=f"these do: {', '.join(rows)}")
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
