"""Ops written as those that runtimes have integer kernels for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ir.intervals import set_range
from normfold.ops.integer_ops import global_pool
from normfold.ops.integers import StaysFloat
from normfold.ops.mixing import averages_all
from normfold.ops.table import TABLE, Op, bounds, row_of
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
            if node.op != "call_function" or is_static(node) or facts.get(node, StaysFloat):
                continue
            if _gate(node) is not None or averages_all(node):
                yield Match(node)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, source = match.node, match.node.args[0]
        assert isinstance(source, fx.Node)
        if _gate(node) is not None:
            gate = rewriter.insert_before(node, getattr(_aten, row_of(node).gate).default, source)
            result = rewriter.insert_before(node, _aten.mul.Tensor, source, gate)
            set_range(gate, bounds(gate))
        else:
            result = rewriter.insert_before(node, global_pool, source)
            facts.carry(node, result)
            if len(shape_of(node)) == 2:
                result = rewriter.insert_before(node, _aten.flatten.using_ints, result, 1)
        rewriter.replace(node, result)
        rewriter.record(f"{match.path}: in a form with integer kernels")


def _gate(node: fx.Node) -> Op | None:
    """The row of g in an op x g(x), where integer kernels look g up."""
    gate = TABLE.get(row_of(node).gate)
    return gate if gate is not None and gate.integers.kernel == "table" else None
