"""What tensors of a graph are on samples: moments, and the channel affine that leads from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.nn.moments import Moments


@dataclass(frozen=True)
class Fit:
    """The least-squares channel affine from a tensor to another, float64, and the moments of the first.

    Attributes:
        scale, shift: (C,), the affine.
        mean, mean_square: (C,), of the input, over samples and positions.
        explained: share of the output's variance that the affine explains, mean over the channels.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    mean_square: Tensor
    explained: float


def measure(graph: Graph, pairs: Sequence[tuple[fx.Node, fx.Node]], ridge: float) -> list[Fit]:
    """Fit an affine along the last axis for each pair (input, output), in one run over ``graph.samples``.

    Returns nothing where the graph has no samples. Memory: one sample's activations.
    """
    samples = graph.sample_inputs()
    if not samples or not pairs:
        return []
    moments = [Moments(pair[0].meta["val"].shape[-1]) for pair in pairs]
    pending: dict[fx.Node, list[tuple[fx.Node, Moments]]] = {}
    for (source, result), item in zip(pairs, moments, strict=True):
        pending.setdefault(result, []).append((source, item))
    sources, kept = {source for source, _ in pairs}, dict[fx.Node, Tensor]()

    def watch(node: fx.Node, value: Any) -> None:
        if node in sources:
            kept[node] = value
        for source, item in pending.get(node, ()):
            item.update(kept[source], value)

    run = Evaluator(graph.module, watch=watch)
    for sample in samples:
        run(*sample)
    return [_fit(item, ridge) for item in moments]


def _fit(moments: Moments, ridge: float) -> Fit:
    scale, shift = moments.affine(ridge)
    return Fit(scale, shift, moments.mean, moments.mean_square, float(moments.r_squared.mean()))
