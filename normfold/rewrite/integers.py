"""Ops written as those that runtimes have integer kernels for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, op_name, shape_of
from normfold.ir.intervals import Interval, set_range
from normfold.ops.integer_ops import global_pool
from normfold.rewrite.base import Match, Pass
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten


@dataclass(frozen=True)
class IntegerForms(Pass):
    """SiLU becomes x * sigmoid(x), a mean over positions a pool.

    Exact:    up to rounding.
    """

    name: ClassVar[str] = "integer-forms"

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if node.op != "call_function" or is_static(node):
                continue
            if op_name(node) == "silu" or _pools_all(node):
                yield Match(node)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, source = match.node, match.node.args[0]
        assert isinstance(source, fx.Node)
        if op_name(node) == "silu":
            result = gate = rewriter.insert_before(node, _aten.sigmoid.default, source)
            result = rewriter.insert_before(node, _aten.mul.Tensor, source, gate)
            set_range(gate, Interval(0.0, 1.0))
        else:
            result = rewriter.insert_before(node, global_pool, source)
            facts.carry(node, result)
            if len(shape_of(node)) == 2:
                result = rewriter.insert_before(node, _aten.flatten.using_ints, result, 1)
        rewriter.replace(node, result)
        rewriter.record(f"{match.path}: in a form with integer kernels")


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
