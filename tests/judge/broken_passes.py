"""Passes with a bug, as another package might bring them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from normfold.ir import Graph, Site
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.provenance import module_path
from normfold.report import PassReport
from normfold.rewrite import Decline, Match, Pass, Rewriter


@dataclass(frozen=True)
class ScaleLinears(Pass):
    """W' = 1 W for every linear; W' = 1.01 W for those in ``wrong``, which is the bug.

    Options:
        wrong: module paths.
    """

    name: ClassVar[str] = "scale-linears"

    wrong: tuple[str, ...] = ()

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if op_name(node) in ("linear", "conv2d") and not is_static(node):
                yield Match(node, (Site(module_path(node), "constant"),))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        factor = 1.01 if match.path in self.wrong else 1.0
        return match.planned(factor, f"scaled by {factor}")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        weight = match.node.args[1]
        scaled = rewriter.expression(torch.ops.aten.mul.Tensor, weight, match.plan)
        rewriter.set_argument(match.node, 1, scaled)
        rewriter.record(match.detail)


@dataclass(frozen=True)
class DropBias(Pass):
    """A pass that works on the whole graph, site by site in nothing: it takes the last linear's bias."""

    name: ClassVar[str] = "drop-bias"

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        node = [node for node in graph.nodes if op_name(node) == "linear"][-1]
        Rewriter(graph).set_argument(node, 2, None)
        graph.recompile()
        return PassReport(str(self), self.exactness.value, modified=True)


@dataclass(frozen=True)
class SpoilRow(Pass):
    """One row of every embedding table times 1.5: float64 sees it only where an input reads the row."""

    name: ClassVar[str] = "spoil-row"
    row: int = 537

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if op_name(node) == "embedding":
                yield Match(node, (Site(module_path(node), "constant"),))

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        table = match.node.args[0]
        assert isinstance(table, fx.Node)
        factors = torch.ones(table.meta["val"].shape[0], 1)
        factors[self.row] = 1.5
        factor = rewriter.constant(factors, "factors")
        spoilt = rewriter.expression(torch.ops.aten.mul.Tensor, table, factor)
        rewriter.set_argument(match.node, 0, spoilt)
        rewriter.record("a row spoilt")
