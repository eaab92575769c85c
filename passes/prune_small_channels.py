"""prune-small-channels: features that hardly matter to what reads them go, and the network becomes smaller.

W x + c  ->  W' x' + (c + W_d E[x_d])        W', x' without the features d; E over samples

Of a reader's result, sum_d var(x_d) |W_d|^2 is lost, relative to the same sum over all features: those of the
least shares go, as long as the square root of what goes stays below `threshold` in every reader. Where a
convolution pads with zeros nothing can stand in for x_d, and E[x_d^2] takes the place of the variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import evaluate
from normfold.ir.states import State
from normfold.ops.linear import Linear, pads_with_zeros
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.constants import Constant
from normfold.rewrite.flow import Blocked, Vector
from normfold.rewrite.pruning import Features, linears

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PruneSmallChannels(Pass):
    """Take out the features whose share in what reads them is least, by ``graph.samples``.

    In no preset: it changes the numbers. Behind `prune-dead-channels`, which costs nothing.

    Options:
        threshold: what a reader's result may lose of its deviation, as if features varied independently.

    Exact:    no: the verdict asks for an error below the budget of 0.01, or `--max-error`.
    Declines: no-samples.
    """

    name: ClassVar[str] = "prune-small-channels"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    measures: ClassVar[bool] = True
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    budget: ClassVar[float | None] = 1e-2

    threshold: Annotated[float, Between(0, 1)] = 1e-3

    def match(self, graph: Graph) -> Iterable[Match]:
        groups, seen = [], set[fx.Node]()
        for linear in linears(graph):
            if linear.node not in seen:
                try:
                    groups.append(Features.of(graph, linear))
                except Blocked:
                    continue
                seen.update(groups[-1].ids)
        read = {x.data: g.axes[x.data] for g in groups for x in g.readers.values()}
        moments = _measured(graph, read)
        for group in groups:
            if group.readers and (not moments or self._small(group, moments)):
                yield Match(group.start.node, (), moments)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if not match.plan:
            return Decline(Reason.NO_SAMPLES, match.node)
        linear = next(item for item in linears(graph) if item.node is match.node)
        try:
            group = Features.of(graph, linear)
        except Blocked as error:
            return Decline(error.reason, error.node, error.detail)
        moments = match.plan
        places = {reader.data: group.axes[reader.data] for reader in group.readers.values()}
        if any(len(moments[x][0]) != len(group.ids[x]) for x in places):  # beside what went before
            moments = _measured(graph, places)
        gone = self._small(group, moments)
        constants = {x.data: _mean(x, moments[x.data]) for x in group.readers.values()}
        text = f"{len(gone)} of {group.width} features"
        return match.planned((group, gone, constants), text)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        group, gone, constants = match.plan
        group.prune(gone, constants, rewriter)
        rewriter.record(f"{match.path}: {match.detail} go")

    def _small(self, group: Features, moments: Mapping[fx.Node, Moments]) -> list[int]:
        """The features that may go, those of the least share first."""
        shares = torch.stack(
            [_shares(group, linear, moments[linear.data]) for linear in group.readers.values()]
        )
        order = shares.amax(0).argsort()
        lost = shares[:, order].cumsum(1).amax(0).sqrt()
        return sorted(order[: int((lost < self.threshold).sum())][: group.width - 1].tolist())


def _measured(graph: Graph, wanted: Mapping[fx.Node, int]) -> dict[fx.Node, Moments]:
    """E[x] and E[x^2] of each place along an axis of each tensor, over samples, in float64."""
    sums: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted:
            flat = value.movedim(wanted[node], 0).flatten(1).double()
            found = torch.stack([flat.sum(1), flat.square().sum(1)])
            sums[node] = sums[node] + found if node in sums else found
            counts[node] = counts.get(node, 0) + flat.shape[1]

    for sample in graph.sample_inputs():
        Evaluator(graph.module, watch=watch)(*sample)
    return {node: tuple(total / counts[node]) for node, total in sums.items()}


def _shares(group: Features, linear: Linear, moments: Moments) -> Tensor:
    """Of each feature, the share in the squared deviation of what an op makes of all."""
    assert linear.in_axis is not None
    mean, square = moments
    harm = square if pads_with_zeros(linear) else (square - mean**2).clamp_min(0)
    weight = (
        evaluate(group.graph.module, linear.weight).double().movedim(linear.in_axis, 0).flatten(1)
    )
    each = harm * weight.square().sum(1)
    ids = group.ids[linear.data]
    total = torch.zeros(group.width, dtype=torch.float64)
    total.index_add_(0, ids[ids >= 0], each[ids >= 0])
    shares: Tensor = total / each.sum().clamp_min(1e-300)
    return shares


def _mean(linear: Linear, moments: Moments) -> Constant:
    mean, _ = moments
    dtype = linear.data.meta["val"].dtype
    known = torch.full_like(mean, not pads_with_zeros(linear), dtype=torch.bool)
    vector = Vector(lambda: mean, lambda rewriter: rewriter.constant(mean.to(dtype), "means"))
    nowhere = torch.zeros_like(known)
    return Constant(vector, known, nowhere, nowhere)
