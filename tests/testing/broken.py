"""Passes that break one promise each, made of a right one: the example plug-in's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from examples.plugin.normfold_plugin_example import FoldScale
from normfold.ir import Graph
from normfold.ir.expressions import fetch
from normfold.ir.graph import argument, op_name
from normfold.report import PassReport
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter

aten = torch.ops.aten


class ForgetsTheBias(FoldScale):
    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        layer, scale = match.node, match.plan
        weight = rewriter.expression(scale.target, layer.args[1], scale.args[1])
        rewriter.set_argument(layer, 1, weight)
        rewriter.replace(scale, layer)
        rewriter.record("scaled")


class LosesBits(FoldScale):
    """Right as an identity and in float64; float32 has no bits left for the output behind a sum of 10,000."""

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        super().rewrite(match, rewriter)
        large = rewriter.insert_after(match.node, aten.add.Tensor, match.node, 1e4)
        rewriter.replace(match.node, large, keep=(large,))
        small = rewriter.insert_after(large, aten.sub.Tensor, large, 1e4)
        rewriter.replace(large, small, keep=(small,))


class ScalesInPlace(FoldScale):
    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        with torch.no_grad():
            for name in ("weight", "bias"):
                read: Any = argument(match.node, name)
                fetch(rewriter.graph.module, read.target).mul_(match.plan.args[1])
        rewriter.replace(match.plan, match.node)
        rewriter.record("scaled")


class LeavesAWrongShape(FoldScale):
    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        super().rewrite(match, rewriter)
        match.node.meta["val"] = match.node.meta["val"][:, :1]


class IgnoresTheLimit(FoldScale):
    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        return super().run(graph, None)


class Backwards(FoldScale):
    def match(self, graph: Graph) -> Iterable[Match]:
        return reversed(list(super().match(graph)))


class LimitFromBehind(FoldScale):
    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        return (FoldScale() if limit is None else Backwards()).run(graph, limit)


class AllInOneRewrite(FoldScale):
    stages: ClassVar[int] = 0

    def match(self, graph: Graph) -> Iterable[Match]:
        yield from list(super().match(graph))[:1]

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        for found in list(super().match(rewriter.graph)):
            super().rewrite(found, rewriter)


class OnlyCounts(FoldScale):
    """Says that it rewrote, and did not; does not even record an edit."""

    stages: ClassVar[int] = 0

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        pass


class OtherCode(FoldScale):
    def check(self, graph: Graph, match: Match) -> Match | Decline:
        found = super().check(graph, match)
        return Decline(Reason.NONLINEAR, match.node) if isinstance(found, Decline) else found


class RewritesInCheck(FoldScale):
    def check(self, graph: Graph, match: Match) -> Match | Decline:
        match.plan.args = (match.plan.args[0], 2 * match.plan.args[1])
        return super().check(graph, match)


class RewritesInMatch(FoldScale):
    def match(self, graph: Graph) -> Iterable[Match]:
        for found in super().match(graph):
            found.plan.args = (found.plan.args[0], 2 * found.plan.args[1])
            yield found


class AddsASiteInCheck(FoldScale):
    def check(self, graph: Graph, match: Match) -> Match | Decline:
        graph.sites["head"] = None  # type: ignore[assignment]
        return super().check(graph, match)


class DeclinesInWords(FoldScale):
    def check(self, graph: Graph, match: Match) -> Match | Decline:
        return Decline("it is not worth it")  # type: ignore[arg-type]


class Generous(FoldScale):
    """Approximate, with a budget that no test could use up."""

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    budget: ClassVar[float | None] = 0.5


class AnotherFunction(ForgetsTheBias):
    exactness: ClassVar[Exactness] = Exactness.CHANGES_FUNCTION


class OneMoreRelu(Pass):
    """relu(relu(x)) = relu(x): right, and never done."""

    name: ClassVar[str] = "one-more-relu"

    def match(self, graph: Graph) -> Iterable[Match]:
        yield from [Match(node) for node in graph.nodes if op_name(node) == "relu"]

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        made = rewriter.insert_after(match.node, aten.relu.default, match.node)
        rewriter.replace(match.node, made, keep=(made,))
        rewriter.record("one more")


class EditsWithoutAMatch(FoldScale):
    """Drops every ReLU when it runs, and matches nothing."""

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        report = super().run(graph, limit)
        for node in [node for node in graph.nodes if op_name(node) == "relu"]:
            Rewriter(graph).replace(node, node.all_input_nodes[0])
        graph.recompile()
        return report


class ChangesTheGivenGraph(FoldScale):
    """Keeps the graph of an earlier run, and edits it in a later one."""

    seen: ClassVar[list[Graph]] = []

    def match(self, graph: Graph) -> Iterable[Match]:
        self.seen.append(graph)
        if len(self.seen) > 1:
            EditsWithoutAMatch().run(self.seen[0])
        return super().match(graph)
