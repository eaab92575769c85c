"""Assignments to slices as a cat, which the exporter would scatter by computed indices; paddings as one Pad."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from normfold.ir.custom_ops import channel_pad
from normfold.ir.expressions import evaluate
from normfold.ir.graph import argument, is_symbolic
from normfold.targets.calls import call, size_of

_aten = torch.ops.aten
_WRITES = (_aten.slice_scatter.default, _aten.select_scatter.default)


def write_pads(module: fx.GraphModule) -> int:
    """Write every padding with one constant for all channels as such; returns how many."""
    found = 0
    for node in [node for node in module.graph.nodes if node.target is channel_pad]:
        x, pad, value, _ = node.args
        low, high = evaluate(module, value).aminmax()
        if low == high and bool(low.isfinite()):
            with module.graph.inserting_before(node):
                args = x, pad, "constant", float(low)
                result = call(module.graph, node, _aten.pad.default, *args)
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
            found += 1
    if found:
        module.graph.eliminate_dead_code()
    return found


def write_slices(graph: fx.Graph) -> int:
    """Write every assignment to a slice without steps as a cat of what stays and what comes; returns how many.

    A copy, of which the exporter writes no broadcast, is what it copies, in the shape and type of its target.
    """
    found = 0
    for node in [node for node in graph.nodes if node.target in (*_WRITES, _aten.copy.default)]:
        with graph.inserting_before(node):
            result = (
                _copied(graph, node) if node.target is _aten.copy.default else _joined(graph, node)
            )
        if result is not None:
            node.replace_all_uses_with(result)
            graph.erase_node(node)
            found += 1
    return found


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source: Any = argument(node, "src")
    own, value = node.meta["val"], source.meta["val"]
    if value.dtype != own.dtype:
        source = call(graph, node, _aten.to.dtype, source, own.dtype)
    if [str(size) for size in value.shape] != [str(size) for size in own.shape]:
        sizes = [size_of(graph, node, node.args[0], dim) for dim in range(own.dim())]
        source = call(graph, node, _aten.expand.default, source, sizes)
    return source  # type: ignore[no-any-return]


def _joined(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The cat, or None where the bounds depend on sizes that are free, or leave gaps."""
    base, source = node.args[0], argument(node, "src")
    assert isinstance(base, fx.Node)
    rank, dim = base.meta["val"].dim(), int(argument(node, "dim", 0))
    dim, size = dim % rank, base.meta["val"].shape[dim]
    if node.target is _aten.select_scatter.default:
        start = argument(node, "index")
        end = sys.maxsize if start == -1 else start + 1
        source = call(graph, node, _aten.unsqueeze.default, source, dim)
    else:
        start, end = argument(node, "start"), argument(node, "end")
        start, end = 0 if start is None else start, sys.maxsize if end is None else end
    if argument(node, "step", 1) != 1 or not isinstance(start, int) or not isinstance(end, int):
        return None
    if not is_symbolic(size):
        start, end, _ = slice(start, end).indices(int(size))
        end = sys.maxsize if end == size else end
    if (start < 0) != (end < 0) and not (start == 0 or end == sys.maxsize):
        return None
    if start >= end:
        return None
    if source.meta["val"].dtype != base.meta["val"].dtype:
        source = call(graph, node, _aten.to.dtype, source, base.meta["val"].dtype)
    parts = [source]
    if start != 0:
        parts.insert(0, call(graph, node, _aten.slice.Tensor, base, dim, 0, start))
    if end != sys.maxsize:
        parts.append(call(graph, node, _aten.slice.Tensor, base, dim, end, sys.maxsize))
    return call(graph, node, _aten.cat.default, parts, dim) if len(parts) > 1 else source
