"""What tensors of a graph are on samples: moments, and the channel affine that leads from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.graph import Graph
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
    if not graph.samples or not pairs:
        return []
    moments = [Moments(pair[0].meta["val"].shape[-1]) for pair in pairs]
    meter = _Meter(graph.module, list(zip(pairs, moments, strict=True)))
    with torch.no_grad():
        for sample in graph.samples:
            meter.run(*pytree.tree_leaves(sample))
    return [_fit(item, ridge) for item in moments]


def _fit(moments: Moments, ridge: float) -> Fit:
    scale, shift = moments.affine(ridge)
    return Fit(scale, shift, moments.mean, moments.mean_square, float(moments.r_squared.mean()))


class _Meter(fx.Interpreter):
    """Runs a graph and updates the moments of each pair when its output is there."""

    def __init__(
        self, module: fx.GraphModule, pairs: list[tuple[tuple[fx.Node, fx.Node], Moments]]
    ) -> None:
        super().__init__(module)
        self.pending: dict[fx.Node, list[tuple[fx.Node, Moments]]] = {}
        for (source, result), moments in pairs:
            self.pending.setdefault(result, []).append((source, moments))
        self.sources = {source for (source, _), _ in pairs}
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.sources:
            self.kept[n] = value
        for source, moments in self.pending.get(n, ()):
            moments.update(self.kept[source], value)
        return value
