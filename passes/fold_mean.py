"""fold-mean: a mean that is taken off in front of linear ops goes into their weights.

W (x - mean(x)) = (W P) x      P = 1 - 11^T / d, so that W P is W less the mean of each of its rows
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static, sharers
from normfold.ir.graph import argument, shape_of
from normfold.ops.linear import Linear, linear_of
from normfold.ops.reads import uses
from normfold.ops.table import row_of
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.absorb import linear_weight

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldMean(Pass):
    """Remove ops that take the mean over the features off what only linear ops read.

    Behind norms that `fold-near-affine` made affines, and in networks that were trained with such ops. No preset
    runs it: elsewhere a mean is taken off by the norms.

    Options:
        copy_shared: a weight with several users may be copied; otherwise the mean stays.
        untie: an embedding table that is also the head's weight may be copied too.

    Exact:    up to rounding; zeros that a convolution pads with have no mean to lose.
    Declines: parameter-shared, output-exposed, nonlinear-neighbour, axis-mismatch.
    """

    name: ClassVar[str] = "fold-mean"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    copy_shared: bool = True
    untie: bool = False

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if _axis(node) is not None and not is_static(node):
                yield Match(node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        axis, readers = _axis(match.node), list[Linear]()
        for use in uses(match.node):
            if use.user.op == "output":
                return Decline(Reason.OUTPUT_EXPOSED, use.user)
            linear = linear_of(use.user)
            if linear is None or linear.data is not match.node:
                return Decline(Reason.NONLINEAR, use.user)
            if linear.in_dim != axis or linear.in_axis is None or linear.groups > 1:
                return Decline(Reason.AXIS_MISMATCH, use.user)
            others = sharers(linear.weight) - {use.user}
            tied = any(row_of(other).lookup for other in others)
            if others and not (self.untie if tied else self.copy_shared):
                return Decline(
                    Reason.PARAMETER_SHARED, use.user, f"also read by `{min(others).name}`"
                )
            readers.append(linear)
        return match.planned(readers, "into the weights behind it")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        for linear in match.plan:
            weight = linear_weight(linear)
            mean = rewriter.expression(aten.mean.dim, weight, [linear.in_axis], True)
            centred = rewriter.expression(aten.sub.Tensor, weight, mean)
            rewriter.set_argument(linear.node, linear.weight_position, centred, same=True)
            rewriter.record(f"{linear.node.name}: its weight without the mean of its inputs")
        source = match.node.args[0]
        assert isinstance(source, fx.Node)
        rewriter.replace(match.node, source, same=False)


def _axis(node: fx.Node) -> int | None:
    """The axis along which a node is ``x - mean(x)``, or None."""
    if node.target is not aten.sub.Tensor or argument(node, "alpha") != 1:
        return None
    x, mean = node.args[:2]
    if not isinstance(mean, fx.Node) or mean.target is not aten.mean.dim or mean.args[0] is not x:
        return None
    axes: Any = argument(mean, "dim")
    if not axes or len(axes) != 1 or not argument(mean, "keepdim"):
        return None
    if mean.meta["val"].dtype != node.meta["val"].dtype:
        return None
    return int(axes[0]) % len(shape_of(node))
