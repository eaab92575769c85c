"""bake: evaluate every parameter expression once, in float64, cast once, and store it as a constant.

W' = cast(expression(float64(W), float64(gamma), ...))

A weight on a grid becomes integers and scales (`normfold.rewrite.storage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from normfold.ir import Graph
from normfold.ir.states import State
from normfold.report import Applied, PassReport
from normfold.rewrite import Effect, Exactness, Match, Pass, Rewriter
from normfold.rewrite.baker import bake
from normfold.rewrite.storage import store_grids


@dataclass(frozen=True)
class Bake(Pass):
    """Turn parameter expressions into constants. Weight norm, spectral norm, parametrizations and weight
    standardisation vanish here too: they are expressions already. A value on a grid is stored in integers.

    Exact:    one rounding per weight.
    Declines: nothing.
    """

    name: ClassVar[str] = "bake"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    ensures: ClassVar[frozenset[State]] = frozenset({State.BAKED})
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.BAKES})

    def match(self, graph: Graph) -> Iterable[Match]:
        return ()

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        raise AssertionError("bake works on the whole graph")

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        before = graph.states
        report = super().run(graph)
        graph.states = before  # `bake` says when everything is
        integers = store_grids(graph)
        stored = bake(graph, limit)
        graph.recompile()
        report.applied, report.rewrites = (
            [Applied(name, "parameter") for name in stored],
            len(stored),
        )
        report.edits = [*integers, *(f"{name}: baked" for name in stored)]
        report.modified = bool(report.edits)
        return report
