"""What each LayerNorm costs to replace: the divergence of the outputs when it alone is, without any training.

harm_i = KL(teacher || teacher with norm i as its nearest affine). The share of its output that an affine explains
does not predict it (a norm that is explained to 95 % may be the worst of all), so it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from normfold.graph import Graph
from normfold.graph.custom_ops import along
from normfold.report.training import DialPoint, Ranking
from normfold.train.checks import IGNORED
from normfold.train.data import Data
from normfold.train.divergence import divergence

# per norm: site path, what it reads, what it gives, scale and shift of the nearest affine
Candidate = tuple[str, fx.Node, fx.Node, Tensor, Tensor]


def rank(
    graph: Graph,
    candidates: Sequence[Candidate],
    data: Data,
    *,
    logits: bool = True,
    batch: int = 64,
    progress: Callable[[str], None] | None = None,
) -> Ranking:
    """Harm of each norm alone, and the dial: outputs with the cheapest 0, 1, 2, ... norms replaced.

    Args:
        graph: with the LayerNorms still in it.
        candidates: the norms that may be replaced.
        data: what the divergence is measured on: samples that the affines were not fitted to, with labels if
            the dial is to show accuracies.
        logits: outputs are compared by KL over their last axis, else by their relative squared error.
    """
    say = progress or (lambda line: None)
    judge = _Judge(graph, candidates, data, logits, batch)
    harms = []
    for index, (path, *_) in enumerate(candidates):
        say(f"harm of each norm: {index + 1} of {len(candidates)}")
        harms.append((path, judge([index]).divergence))
    order = sorted(range(len(candidates)), key=lambda index: harms[index][1])
    dial = []
    for count in range(len(order) + 1):
        say(f"the cheapest {count} of {len(order)} norms replaced")
        point = judge(order[:count])
        dial.append(point)
    return Ranking(tuple(harms[index] for index in order), tuple(dial))


class _Judge:
    """Runs the graph with some norms replaced, and compares with the graph as it is."""

    def __init__(
        self, graph: Graph, candidates: Sequence[Candidate], data: Data, logits: bool, batch: int
    ) -> None:
        self.graph, self.candidates, self.data = graph, candidates, data
        self.logits, self.batch = logits, batch
        self.expected = [self._outputs([], rows) for rows in self._batches()]

    def __call__(self, chosen: Sequence[int]) -> DialPoint:
        distance, agree, right, labelled, positions = 0.0, 0.0, 0.0, 0, 0
        for rows, theirs in zip(self._batches(), self.expected, strict=True):
            mine, labels = self._outputs(chosen, rows), self.data.labels(rows)
            distance += float(divergence(mine, theirs, logits=self.logits)) * len(rows)
            guess = mine.argmax(-1)
            agree += float((guess == theirs.argmax(-1)).sum())
            positions += guess.numel()
            if labels is not None and labels.shape == guess.shape:
                right += float((guess == labels).sum())
                labelled += int((labels != IGNORED).sum())
        last = self.candidates[chosen[-1]][0] if chosen else ""
        return DialPoint(
            len(chosen),
            last,
            distance / len(self.data),
            100 * agree / positions,
            100 * right / labelled if labelled else None,
        )

    def _batches(self) -> list[Tensor]:
        return list(torch.arange(len(self.data)).split(self.batch))

    def _outputs(self, chosen: Sequence[int], rows: Tensor) -> Tensor:
        """The first output, with the chosen norms replaced."""
        runner = _Replaced(self.graph.module, [self.candidates[index] for index in chosen])
        with torch.no_grad():
            outputs = runner.run(*self.data.inputs(rows), enable_io_processing=False)
        leaves = torch.utils._pytree.tree_leaves(outputs)
        found: Tensor = next(leaf for leaf in leaves if leaf.is_floating_point())
        return found.float()


class _Replaced(fx.Interpreter):
    """Runs a graph with affines where some of its norms are."""

    def __init__(self, module: fx.GraphModule, replaced: Sequence[Candidate]) -> None:
        super().__init__(module)
        self.by_result = {result: item for item in replaced for result in [item[2]]}
        self.sources = {item[1] for item in replaced}
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        item = self.by_result.get(n)
        if item is None:
            value = super().run_node(n)
        else:
            _, source, _, scale, shift = item
            x = self.kept[source]
            wide = [along(part.to(x), -1, x.dim()) for part in (scale, shift)]
            value = x * wide[0] + wide[1]
        if n in self.sources:
            self.kept[n] = value
        return value
