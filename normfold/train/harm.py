"""What each LayerNorm costs to replace: the divergence of the outputs when it alone is, without any training.

harm_i = KL(teacher || teacher with norm i as its nearest affine). The share of its output that an affine explains
does not predict it (a norm that is explained to 95 % may be the worst of all), so it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from normfold.data.metrics import Comparison, Drift, Metric
from normfold.data.samples import Data
from normfold.ir import Graph
from normfold.ir.custom_ops import along
from normfold.ir.evaluation import Evaluator
from normfold.progress import Listener, Progress, silent
from normfold.report.training import DialPoint, Ranking
from normfold.train.divergence import divergence
from normfold.train.student import is_float

# per norm: site path, what it reads, what it gives, scale and shift of the nearest affine
Candidate = tuple[str, fx.Node, fx.Node, Tensor, Tensor]


def rank(
    graph: Graph,
    candidates: Sequence[Candidate],
    data: Data,
    *,
    logits: bool = True,
    metric: str | Metric | None = None,
    batch: int = 64,
    say: Listener = silent,
) -> Ranking:
    """Harm of each norm alone, and the dial: outputs with the cheapest 0, 1, 2, ... norms replaced.

    Args:
        graph: with the LayerNorms still in it.
        candidates: the norms that may be replaced.
        data: what the divergence is measured on: samples that the affines were not fitted to, with labels if
            the dial is to show accuracies.
        logits: outputs are compared by KL over their last axis, else by their relative squared error.
        metric: of the dial, see `normfold.data.metrics.Comparison`.
    """
    judge = _Judge(graph, candidates, data, logits, batch)
    harms = []
    for index, (path, *_) in enumerate(candidates):
        say(Progress("harm of each norm", index + 1, len(candidates)))
        harms.append((path, judge.divergence([index])))
    order = sorted(range(len(candidates)), key=lambda index: harms[index][1])
    dial = []
    for count in range(len(order) + 1):
        say(Progress("the cheapest norms replaced", count, len(order)))
        dial.append(judge.point(order[:count], metric))
    return Ranking(tuple(harms[index] for index in order), tuple(dial))


class _Judge:
    """Runs the graph with some norms replaced, and compares with the graph as it is."""

    def __init__(
        self, graph: Graph, candidates: Sequence[Candidate], data: Data, logits: bool, batch: int
    ) -> None:
        self.graph, self.candidates, self.data = graph, candidates, data
        self.logits, self.batch = logits, batch
        self.expected = [self._outputs([], rows) for rows in self._batches()]

    def divergence(self, chosen: Sequence[int]) -> float:
        """Mean over the samples."""
        total = 0.0
        for rows, theirs in zip(self._batches(), self.expected, strict=True):
            mine = self._outputs(chosen, rows)
            total += float(divergence(mine[0], theirs[0], logits=self.logits)) * len(rows)
        return total / len(self.data)

    def point(self, chosen: Sequence[int], metric: str | Metric | None) -> DialPoint:
        """What the user would see with these norms replaced."""
        total, compared = 0.0, Comparison(logits=self.logits, metric=metric)
        for rows, theirs in zip(self._batches(), self.expected, strict=True):
            mine = self._outputs(chosen, rows)
            total += float(divergence(mine[0], theirs[0], logits=self.logits)) * len(rows)
            compared.add(mine, theirs, self.data.labels(rows))
        drift = compared.drift()
        return DialPoint(
            len(chosen),
            self.candidates[chosen[-1]][0] if chosen else "",
            total / len(self.data),
            _percent(drift.agreement),
            _percent(drift.accuracy_student),
            drift.metric_student,
            drift.paired_se if drift.paired_se is not None else _error(drift),
        )

    def _batches(self) -> list[Tensor]:
        return list(torch.arange(len(self.data)).split(self.batch))

    def _outputs(self, chosen: Sequence[int], rows: Tensor) -> list[Tensor]:
        """The floating-point outputs, with the chosen norms replaced."""
        candidates = [self.candidates[index] for index in chosen]
        by_result = {item[2]: item for item in candidates}
        sources, kept = {item[1] for item in candidates}, dict[fx.Node, Tensor]()

        def watch(node: fx.Node, value: Any) -> Any:
            if node in by_result:
                _, source, _, scale, shift = by_result[node]
                x = kept[source]
                wide = [along(part.to(x), -1, x.dim()) for part in (scale, shift)]
                value = x * wide[0] + wide[1]
            if node in sources:
                kept[node] = value
            return value

        outputs = Evaluator(self.graph.module, watch=watch)(*self.data.inputs(rows))
        return [leaf for leaf in outputs if is_float(leaf)]


def _error(drift: Drift) -> float | None:
    """Standard error of the agreement, in points; positions of one sample are not taken for independent."""
    if drift.agreement is None:
        return None
    return 100 * math.sqrt(drift.agreement * (1 - drift.agreement) / drift.samples)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
