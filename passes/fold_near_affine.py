"""fold-near-affine: a norm that divides by a number that barely varies becomes an affine.

y = P x / sqrt(v + eps)  ->  k P x      v the variance, P takes the mean off; of an RMSNorm: the mean square, P = 1

k = 2 / (sqrt(low + eps) + sqrt(high + eps)), for v from low to high, is the nearest one. It errs by at most
d = (sqrt(high + eps) - sqrt(low + eps)) / (sqrt(high + eps) + sqrt(low + eps)) of y, about (high - low) / (4 eps).

Networks whose LayerNorms were trained away store them so (Baroni et al. 2025, arXiv 2507.02559: eps 1e12, gains
times 1e6), and half precision has no such numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import Graph, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, shape_of
from normfold.ir.sites import AffineOf, norm_sites
from normfold.ir.states import State
from normfold.ops import groups as grouping
from normfold.ops.table import is_norm
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.centering import affine_of

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldNearAffine(Pass):
    """Replace LayerNorms and RMSNorms by affines where their variance matters less than `max_deviation`.

    What takes the mean off stays an op of its own; `fold-mean`, behind `fold-affine`, takes it into weights.

    Options:
        variance: largest variance (of an RMSNorm: mean square) that an input of a norm has over its features; 0:
            it is measured on ``graph.samples``, the least one too.
        margin: factor by which variances may be beyond the measured ones, on both sides.
        max_deviation: what an affine may err by, relative to what the norm returns, within that range.

    Exact:    no, within the deviation that the report gives for each norm.
    Declines: not-per-channel, no-samples, not-near-affine.
    """

    name: ClassVar[str] = "fold-near-affine"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    measures: ClassVar[bool] = True
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    budget: ClassVar[float | None] = 1e-3  # a hundred norms at the default of `max_deviation`

    variance: Annotated[float, Between(0)] = 0.0
    margin: Annotated[float, Between(1)] = 4.0
    max_deviation: Annotated[float, Between(0, 1)] = 1e-5

    def match(self, graph: Graph) -> Iterable[Match]:
        norms = [
            node
            for node in graph.nodes
            if is_norm(node, "layer-norm", "rms-norm") and not is_static(node)
        ]
        measured = {} if self.variance else _variances(graph, norms)
        for node in norms:
            if self.variance:
                span: tuple[float, float] | None = (0.0, self.variance)
            else:
                span = measured.get(node)
                span = span and (span[0] / self.margin, span[1] * self.margin)
            yield Match(node, norm_sites(node), span)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        norm, span = match.node, match.plan
        if argument(norm, "weight") is not None or not _sizes(norm):
            return Decline(Reason.NOT_PER_CHANNEL, norm)
        if span is None:
            text = "the variances of its input are not known"
            return Decline(Reason.NO_SAMPLES, norm, f"{text}: `variance` states the largest one")
        eps = _eps(norm)
        low, high = (math.sqrt(end + eps) for end in span)
        if not 0 < low <= high < math.inf:
            return Decline(Reason.NOT_NEAR_AFFINE, norm, "its variance may be zero, and its eps is")
        deviation = (span[1] - span[0]) / (low + high) ** 2
        text = f"within {deviation:.2g} for variances from {span[0]:.3g} to {span[1]:.3g}"
        if deviation > self.max_deviation:
            return Decline(
                Reason.NOT_NEAR_AFFINE, norm, f"eps is {eps:.3g}, and an affine is {text}"
            )
        return match.planned(2 / (low + high), text)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        norm = match.node
        x: Any = norm.args[0]
        rank, sizes = len(shape_of(norm)), _sizes(norm)
        if is_norm(norm, "layer-norm") and not _is_centred(x, rank, sizes):
            axes = list(range(-len(sizes), 0))
            mean = rewriter.insert_before(norm, aten.mean.dim, x, axes, True)
            x = rewriter.insert_before(norm, aten.sub.Tensor, x, mean)
        rewriter.record(f"{match.path}: an affine {match.detail}")
        affine = affine_of(norm)
        if (
            affine is not None and affine.args[1] is not None
        ):  # its gain may be as large as k is small
            scale = rewriter.expression(aten.mul.Tensor, affine.args[1], match.plan)
            rewriter.set_argument(affine, 1, scale)
            rewriter.replace(norm, x, same=False)
            rewriter.changed_behind(affine)
            return
        dtype = torch.promote_types(norm.meta["val"].dtype, torch.float32)
        scale = rewriter.expression(aten.full.default, sizes[-1:], match.plan, dtype=dtype)
        new = rewriter.insert_before(norm, channel_affine, x, scale, None, rank - 1)
        facts.put(new, AffineOf(match.sites))
        rewriter.replace(norm, new, same=False)
        rewriter.changed_behind(new)


def _sizes(norm: fx.Node) -> list[int]:
    """Sizes of the axes that a norm runs over; none where they are free."""
    sizes = list(argument(norm, "normalized_shape"))
    return sizes if all(isinstance(size, int) for size in sizes) else []


def _eps(norm: fx.Node) -> float:
    eps = argument(norm, "eps")
    return torch.finfo(norm.meta["val"].dtype).eps if eps is None else float(eps)


def _is_centred(x: fx.Node, rank: int, sizes: Sequence[int]) -> bool:
    groups = grouping.centred_groups(x)
    own = grouping.over_last(rank, list(sizes))
    return groups is not None and grouping.key(groups) == grouping.key(grouping.canonical(own))


def _variances(graph: Graph, norms: Sequence[fx.Node]) -> Mapping[fx.Node, tuple[float, float]]:
    """The least and largest variance (mean square, of an RMSNorm) of each norm's input on ``graph.samples``."""
    readers: dict[Any, list[fx.Node]] = {}
    for norm in norms:
        readers.setdefault(norm.args[0], []).append(norm)
    found: dict[fx.Node, tuple[float, float]] = {}

    def watch(node: fx.Node, value: Tensor) -> None:
        for norm in readers.get(node, ()):
            axes = list(range(-len(argument(norm, "normalized_shape")), 0))
            wide = value.double()
            centred = wide - wide.mean(axes, True) if is_norm(norm, "layer-norm") else wide
            low, high = torch.aminmax(centred.square().mean(axes))
            least, most = found.get(norm, (math.inf, 0.0))
            found[norm] = min(least, float(low)), max(most, float(high))

    samples = graph.sample_inputs() if norms else []
    run = Evaluator(graph.module, watch=watch)
    for sample in samples:
        run(*sample)
    return found
