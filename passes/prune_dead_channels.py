"""prune-dead-channels: features that are constant, or that nobody reads, go, and the network becomes smaller.

W x + c  with x_d = k     ->     W' x' + (c + W_d k)        W', x' without feature d

A gain of exactly 0 makes the weights of a channel zero (`fold-affine` in front): what is left of it is a bias on
its way through activations, sums, gates and pools.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import Graph
from normfold.ir.states import State
from normfold.rewrite import Decline, Exactness, Match, Pass, Rewriter
from normfold.rewrite.flow import Blocked
from normfold.rewrite.pruning import Features, linears, silent


@dataclass(frozen=True)
class PruneDeadChannels(Pass):
    """Take out features of linear ops that are constant at every position, or whose readers all have zeros for it.

    In no preset: trained networks seldom have such features, and looking for them takes a pass over all weights.
    Run it behind `fold-affine`, in networks that were trained or cut to have gains of 0.

    Exact:    up to rounding.
    Declines: output-exposed, axis-mismatch (the features lie along several axes, or are placed by number),
        nonlinear (a norm or attention reads them together), parameter-shared.
    """

    name: ClassVar[str] = "prune-dead-channels"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    stages: ClassVar[int] = 1  # what is pruned may leave others without weights

    def match(self, graph: Graph) -> Iterable[Match]:
        seen: set[fx.Node] = set()
        for linear in linears(graph):
            if linear.node in seen:
                continue
            try:
                features = Features.of(graph, linear)
            except Blocked as error:
                if silent(graph, linear):
                    yield Match(linear.node, (), Decline(error.reason, error.node, error.detail))
                continue
            seen.update(features.ids)
            if features.dead()[0]:
                yield Match(linear.node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if isinstance(match.plan, Decline):
            return match.plan
        linear = next(item for item in linears(graph) if item.node is match.node)
        try:
            features = Features.of(graph, linear)
        except Blocked as error:
            return Decline(error.reason, error.node, error.detail)
        gone, constants = features.dead()
        gone = gone[: features.width - 1]  # one of them stays: no op takes none
        text = f"{len(gone)} of {features.width} features"
        return match.planned((features, gone, constants), text)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        features, gone, constants = match.plan
        features.prune(gone, constants, rewriter)
        rewriter.record(f"{match.path}: {match.detail} go")
