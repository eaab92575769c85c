"""measure-ranges: what every tensor is on samples, for the passes that put tensors on grids and correct biases.

x  ->  x, with [min x, max x] over ``graph.samples``; of what a linear op gives also the mean of each channel

Nothing of the graph changes. `normfold quantize` finds ranges without data, too: by statistics of norms and by
synthesised inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from normfold.domains.observed import measure
from normfold.ir import Graph
from normfold.ir.intervals import note_mean, set_range
from normfold.ops.table import bounds
from normfold.report import PassReport
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.base import declined


@dataclass(frozen=True)
class MeasureRanges(Pass):
    """Measure value ranges and means on ``graph.samples``, in front of the passes that quantise.

    Exact:    it changes nothing.
    Declines: no-samples.
    """

    name: ClassVar[str] = "measure-ranges"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    measures: ClassVar[bool] = True

    def match(self, graph: Graph) -> Iterable[Match]:
        return ()

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        raise AssertionError("measure-ranges works on the whole graph")

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        report = super().run(graph)
        found = measure(graph, graph.sample_inputs())
        for node, item in found.items():
            set_range(node, item.interval.within(bounds(node)))
            if item.mean is not None:
                note_mean(node, item.mean)
        if not found:
            first = next(node for node in graph.nodes if node.op == "placeholder")
            report.declined = declined(Match(first), Decline(Reason.NO_SAMPLES, first))
        return report
