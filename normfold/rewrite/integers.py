"""Ops written as those that runtimes have integer kernels for."""

from __future__ import annotations

import torch
from torch import fx

from normfold.graph import facts
from normfold.graph.expressions import is_static
from normfold.graph.graph import argument, op_name, shape_of
from normfold.graph.integer_ops import global_pool
from normfold.graph.intervals import Interval, set_range
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten


def prepare(rewriter: Rewriter) -> None:
    """Write ops as those that have integer kernels: SiLU as x * sigmoid(x), a mean over positions as a pool."""
    for node in list(rewriter.graph.nodes):
        if is_static(node) or node.op != "call_function":
            continue
        source = node.args[0]
        if op_name(node) == "silu":
            assert isinstance(source, fx.Node)
            gate = rewriter.insert_before(node, _aten.sigmoid.default, source)
            rewriter.replace(node, rewriter.insert_before(node, _aten.mul.Tensor, source, gate))
            set_range(gate, Interval(0.0, 1.0))
        elif _pools_all(node):
            assert isinstance(source, fx.Node)
            pooled = rewriter.insert_before(node, global_pool, source)
            facts.carry(node, pooled)
            if len(shape_of(node)) == 2:
                pooled = rewriter.insert_before(node, _aten.flatten.using_ints, pooled, 1)
            rewriter.replace(node, pooled)


def _pools_all(node: fx.Node) -> bool:
    """True for a mean over all axes behind the channels."""
    if op_name(node) != "mean" and not op_name(node).startswith("adaptive_avg_pool"):
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = len(shape_of(source))
    if op_name(node) == "mean":
        dims = argument(node, "dim") or ()
        return rank > 2 and sorted(dim % rank for dim in dims) == list(range(2, rank))
    return all(size == 1 for size in argument(node, "output_size"))
