"""fold-scale: a number that multiplies or divides the output of a layer goes into its weight and bias.

c (W x + b) = (c W) x + c b

A temperature behind a head, `head(x) / 2.5`, costs nothing then.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, argument_index, op_name
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter

LAYERS = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class FoldScale(Pass):
    """Scale the weight and the bias of a layer in place of its output.

    Exact:    up to rounding.
    Declines: output-reused (something else reads the output of the layer, without the scale).
    """

    name: ClassVar[str] = "fold-scale"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    stages: ClassVar[int] = 1  # look again after a rewrite: layer(x) * 2 / 3 has two

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            if op_name(node) in ("mul", "div") and not node.kwargs:
                layer, number = node.args
                if isinstance(layer, fx.Node) and _is_layer(layer) and _is_scale(number):
                    yield Match(layer, plan=node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if len(match.node.users) > 1:
            return Decline(Reason.OUTPUT_REUSED, match.node)
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        layer, scale = match.node, match.plan
        for name in ("weight", "bias"):
            old = argument(layer, name)
            if old is not None:
                new = rewriter.expression(scale.target, old, scale.args[1])
                rewriter.set_argument(layer, argument_index(layer, name), new)
        rewriter.replace(scale, layer)
        rewriter.record(f"{match.path}: {op_name(scale)} by {scale.args[1]}")


def _is_layer(node: fx.Node) -> bool:
    """True for a layer in floats with a weight of its own."""
    if op_name(node) not in LAYERS or not node.meta["val"].is_floating_point():
        return False
    return is_static(argument(node, "weight"))


def _is_scale(number: object) -> bool:
    return isinstance(number, int | float) and number != 0 and math.isfinite(number)
