"""Which opset a graph is written in for a target."""

from __future__ import annotations

import torch

from normfold.errors import UsageError
from normfold.ir.graph import Graph
from normfold.ops.integer_ops import dequantize, stored_matmul, take_rows
from normfold.ops.table import norm_of
from normfold.target import Target

# torch implements its translations at 18; below, a version converter would rewrite our file
OLDEST_OPSET = 18
_BLOCKS_OPSET = 21
_STEPS_OPSET = 19  # the first whose QuantizeLinear makes floats of 8 bits, or reads half precision
_BLOCK = {
    dequantize: (4, 5),
    stored_matmul: (4, 5),
    take_rows: (3, 4),
}  # which arguments are block and bits
_BF16_OPSET = 22  # the first whose Conv and pools take bfloat16


def default_opset(graph: Graph, target: Target) -> int:
    """The oldest opset that holds each norm of ``graph`` as one op for this runtime."""
    norms = (norm_of(node) for node in graph.nodes)
    has_rms = any(norm is not None and norm.kind == "rms-norm" for norm in norms)
    oldest = target.rms_opset if has_rms else target.opset
    oldest = max(oldest, _BLOCKS_OPSET) if has_blocks(graph) else oldest
    oldest = max(oldest, _STEPS_OPSET) if _has_wide_steps(graph) else oldest
    return max(oldest, _BF16_OPSET) if _has_bf16(graph) else oldest


def has_blocks(graph: Graph) -> bool:
    """True if a weight has 4 bits or scales by block, which DequantizeLinear takes since opset 21."""
    grids = [(node.args, _BLOCK[node.target]) for node in graph.nodes if node.target in _BLOCK]
    return any(args[block] or args[bits] == 4 for args, (block, bits) in grids)


def _has_wide_steps(graph: Graph) -> bool:
    """True if values on grids are floats of 8 bits, or what they stand for is in half precision."""
    grids = [node for node in graph.nodes if node.target is dequantize]
    half = any(node.meta["val"].dtype != torch.float32 for node in grids)
    return half or any(x.all_input_nodes[0].meta["val"].is_floating_point() for x in grids)


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
            f"opset {opset} has no scales by block and no weights of 4 bits",
            hint=f"leave the opset out, or ask for {_BLOCKS_OPSET} or newer",
        )
    if opset < _STEPS_OPSET and _has_wide_steps(graph):
        raise UsageError(
            f"opset {opset} has no 8-bit floats, and no grids of values in half precision",
            hint=f"leave the opset out, or ask for {_STEPS_OPSET} or newer",
        )
    if opset > newest_opset():
        raise UsageError(
            f"opset {opset} is too new",
            found=f"the installed torch writes up to opset {newest_opset()}",
            hint=f"ask for {OLDEST_OPSET} to {newest_opset()}",
        )
    return opset
