"""Which opset a graph is written in for a target."""

from __future__ import annotations

import torch

from normfold.errors import UsageError
from normfold.ir.graph import Graph
from normfold.ops.integer_ops import dequantize, take_rows
from normfold.ops.table import norm_of
from normfold.target import Target

# torch implements its translations at 18; below, a version converter would rewrite our file
OLDEST_OPSET = 18
_BLOCKS_OPSET = 21
_BLOCK = {dequantize: 4, take_rows: 3}  # which argument it is
_BF16_OPSET = 22  # the first whose Conv and pools take bfloat16


def default_opset(graph: Graph, target: Target) -> int:
    """The oldest opset that holds each norm of ``graph`` as one op for this runtime."""
    norms = (norm_of(node) for node in graph.nodes)
    has_rms = any(norm is not None and norm.kind == "rms-norm" for norm in norms)
    oldest = target.rms_opset if has_rms else target.opset
    oldest = max(oldest, _BLOCKS_OPSET) if has_blocks(graph) else oldest
    return max(oldest, _BF16_OPSET) if _has_bf16(graph) else oldest


def has_blocks(graph: Graph) -> bool:
    """True if blocks of a weight have a scale each, which DequantizeLinear takes since opset 21."""
    return any(node.args[_BLOCK[node.target]] for node in graph.nodes if node.target in _BLOCK)


def _has_bf16(graph: Graph) -> bool:
    values = (node.meta.get("val") for node in graph.nodes)
    return any(getattr(value, "dtype", None) is torch.bfloat16 for value in values)


def newest_opset() -> int:
    """The newest opset that the installed torch translates to."""
    try:
        from torch.onnx._constants import ONNX_MAX_OPSET
    except ImportError:  # not a public name
        return 23
    return int(ONNX_MAX_OPSET)


def choose_opset(graph: Graph, target: Target, opset: int | None) -> int:
    """The asked opset if it can be written, else the target's default.

    Raises:
        UsageError: below 18, above what the installed torch writes, or too old for scales by block.
    """
    if opset is None:
        return min(default_opset(graph, target), newest_opset())
    if opset < OLDEST_OPSET:
        raise UsageError(
            f"opset {opset} is too old",
            found=f"torch translates to opset {OLDEST_OPSET} or newer; older files come from a converter "
            "that rewrites the graph after the verdict",
            hint=f"leave the opset out ({target.name} takes {default_opset(graph, target)}), or ask for "
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
