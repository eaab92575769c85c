"""Export dialects: what the runtime that will read a file wants of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch

from normfold.errors import UsageError
from normfold.graph.graph import Graph, op_name

# torch implements its translations at 18; below, a version converter would rewrite our file
OLDEST_OPSET = 18
_BLOCKS_OPSET = 21
_BF16_OPSET = 22  # the first whose Conv and pools take bfloat16
_NEVER = 1 << 10
_RMS_NORM = {"rms_norm", "_fused_rms_norm"}


@dataclass(frozen=True)
class Dialect:
    """What one family of runtimes wants.

    ``opset`` is the default. ``rms_opset`` is the default for a graph with RMS norms: 23 has a native
    RMSNormalization, below that the exporter writes mean-of-squares primitives. ``wants`` says in words what
    the runtime cares about. From ``attention_opset`` on attention is one Attention op, below it plain ops.
    """

    name: str
    opset: int
    rms_opset: int
    description: str
    wants: str
    attention_opset: int = 23

    def default_opset(self, graph: Graph) -> int:
        """The opset for ``graph``: the oldest that holds each of its norms as one op for this runtime."""
        has_rms = any(op_name(node) in _RMS_NORM for node in graph.nodes)
        oldest = self.rms_opset if has_rms else self.opset
        oldest = max(oldest, _BLOCKS_OPSET) if has_blocks(graph) else oldest
        return max(oldest, _BF16_OPSET) if _has_bf16(graph) else oldest


def has_blocks(graph: Graph) -> bool:
    """True if blocks of a weight have a scale each, which DequantizeLinear takes since opset 21."""
    grids = (node for node in graph.nodes if op_name(node) == "normfold::dequantize")
    return any(node.args[4] for node in grids)


def _has_bf16(graph: Graph) -> bool:
    values = (node.meta.get("val") for node in graph.nodes)
    return any(getattr(value, "dtype", None) is torch.bfloat16 for value in values)


DIALECTS = {
    item.name: item
    for item in (
        Dialect(
            "ort-x86",
            opset=20,
            rms_opset=23,
            description="onnxruntime on x86-64 CPUs (1.23 or newer for RMSNormalization)",
            wants="native LayerNormalization and RMSNormalization, one Gelu op (20), dynamic batch",
        ),
        Dialect(
            "ort-arm",
            opset=20,
            rms_opset=23,
            description="onnxruntime on Arm CPUs (1.23 or newer for RMSNormalization)",
            wants="as ort-x86; differs only once weights are quantised",
        ),
        Dialect(
            "trt",
            opset=20,
            rms_opset=20,
            description="TensorRT 10.12 or newer, strongly typed",
            wants="LayerNormalization native; RMSNormalization from TensorRT 10.15 on (known when an engine is "
            "built), else as primitives in float32; attention as plain ops, which it fuses itself",
            attention_opset=_NEVER,
        ),
        Dialect(
            "trt-rtx",
            opset=20,
            rms_opset=23,
            description="TensorRT-RTX 1.x",
            wants="LayerNormalization and RMSNormalization native; attention as plain ops: an Attention op "
            "in float32 parses and does not build",
            attention_opset=_NEVER,
        ),
    )
}


def dialect(name: str) -> Dialect:
    """The dialect called ``name``.

    Raises:
        UsageError: there is no such dialect; the message names the nearest one.
    """
    if name in DIALECTS:
        return DIALECTS[name]
    near = difflib.get_close_matches(name.lower(), DIALECTS, n=1, cutoff=0.4)
    raise UsageError(
        f"there is no export dialect `{name}`",
        hint=(f"did you mean `{near[0]}`? " if near else "") + f"known: {', '.join(DIALECTS)}",
    )


def newest_opset() -> int:
    """The newest opset that the installed torch translates to."""
    try:
        from torch.onnx._constants import ONNX_MAX_OPSET
    except ImportError:  # not a public name
        return 23
    return int(ONNX_MAX_OPSET)


def choose_opset(graph: Graph, target: Dialect, opset: int | None) -> int:
    """The asked opset if it can be written, else the dialect's default.

    Raises:
        UsageError: below 18, above what the installed torch writes, or too old for scales by block.
    """
    if opset is None:
        return min(target.default_opset(graph), newest_opset())
    if opset < OLDEST_OPSET:
        raise UsageError(
            f"opset {opset} is too old",
            found=f"torch translates to opset {OLDEST_OPSET} or newer; older files come from a converter "
            "that rewrites the graph after the verdict",
            hint=f"leave the opset out ({target.name} takes {target.default_opset(graph)}), or ask for "
            f"{OLDEST_OPSET} to {newest_opset()}",
        )
    if opset < _BLOCKS_OPSET and has_blocks(graph):
        raise UsageError(
            f"opset {opset} has no scales by block",
            hint=f"leave the opset out, or ask for {_BLOCKS_OPSET} or newer",
        )
    if opset > newest_opset():
        raise UsageError(
            f"opset {opset} is too new",
            found=f"the installed torch writes up to opset {newest_opset()}",
            hint=f"ask for {OLDEST_OPSET} to {newest_opset()}",
        )
    return opset
