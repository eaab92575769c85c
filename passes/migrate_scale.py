"""migrate-scale: part of the scale of each channel of activations moves into the weights that read it.

W norm(x)  =  (W S) (S^-1 norm(x))        s_j = max|x_j|^a / max|W_j|^(1 - a)

S^-1 goes into the gain of the norm, so that no op is added (Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438).
max|x_j| is measured on ``graph.samples``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.custom_ops import channel_affine
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, shape_of
from normfold.ir.sites import norm_sites
from normfold.ops.layout import LayoutError
from normfold.ops.table import is_norm
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.balance import into_readers, largest_read
from normfold.rewrite.flow import Blocked


@dataclass(frozen=True)
class MigrateScale(Pass):
    """Scale the channels between a LayerNorm or RMSNorm and linear layers: both sides get easier to quantise.

    Options:
        alpha: the share of the scale that moves into the weights: 0 none, 1 all.

    Exact:    up to rounding.
    Declines: no-samples, and what keeps a positive scale from the weights.
    """

    name: ClassVar[str] = "migrate-scale"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    measures: ClassVar[bool] = True

    alpha: Annotated[float, Between(0, 1)] = 0.5

    def match(self, graph: Graph) -> Iterable[Match]:
        norms = [node for node in graph.nodes if _core(node)]
        peaks = _peaks(graph, norms) if self.alpha else {}
        for node in norms:
            none = None if self.alpha else torch.ones(shape_of(node)[-1], dtype=torch.float64)
            yield Match(node, norm_sites(node), peaks.get(node, none))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if match.plan is None:
            return Decline(Reason.NO_SAMPLES, match.node)
        node, dim, large = match.node, len(shape_of(match.node)) - 1, match.plan
        try:
            read = largest_read(graph, node, dim)
            factors = large**self.alpha / read ** (1 - self.alpha)
            factors[(large == 0) | (read == 0)] = 1.0
            return match.planned((factors, into_readers(graph, node, dim, factors)))
        except Blocked as error:
            return Decline(error.reason, error.node, error.detail)
        except LayoutError as error:
            return Decline(Reason.AXIS_MISMATCH, node, str(error))

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, (factors, edits) = match.node, match.plan
        for edit in edits:
            edit(rewriter)
        scale = rewriter.constant(factors, "scale")
        gain = rewriter.expression(torch.ops.aten.reciprocal.default, scale)
        gain = rewriter.cast(gain, node.meta["val"].dtype)
        dim = len(shape_of(node)) - 1
        scaled = rewriter.insert_after(node, channel_affine, node, gain, None, dim)
        rewriter.replace(node, scaled, keep=(scaled,))  # what its readers made true of it
        rewriter.changed(node)
        rewriter.record(
            f"{match.path}: scales of {float(factors.min()):.3g} to {float(factors.max()):.3g}"
        )


def _core(node: fx.Node) -> bool:
    if not is_norm(node, "layer-norm", "rms-norm") or is_static(node):
        return False
    return argument(node, "weight") is None and len(argument(node, "normalized_shape")) == 1


def _peaks(graph: Graph, norms: list[fx.Node]) -> dict[fx.Node, Tensor]:
    """Largest |value| of each channel on the samples."""
    found: dict[fx.Node, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted:
            peak = value.abs().flatten(0, -2).amax(0).double()
            found[node] = torch.maximum(found[node], peak) if node in found else peak

    wanted = set(norms)
    run = Evaluator(graph.module, watch=watch)
    for sample in graph.sample_inputs():
        run(*sample)
    return found
