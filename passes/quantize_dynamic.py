"""quantize-dynamic: matrix products in integers, with the grid of each input found at run time.

y = x W + c  ->  (s_x round(x / s_x)) (s_W round(W / s_W)) + c      s_x from the smallest and largest of this x

No ranges of activations are needed; each product costs one more pass over its input. `bake` makes integers of W.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.grids import grid_of, top_of
from normfold.ops.integer_ops import on_dynamic_grid, on_grid
from normfold.ops.integers import quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.ops.table import row_of
from normfold.rewrite import Decline, Effect, Exactness, Match, Pass, Reason, Rewriter


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Put the weights of linear layers on grids, and their inputs at run time. Convolutions stay as they are.

    Exact:    no: values are rounded.
    Declines: on-a-grid.
    """

    name: ClassVar[str] = "quantize-dynamic"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            linear = weighted(node)
            if linear is None or linear.kernel:
                continue
            if linear.weight_position == 1 or linear.bias_position == 0:  # not W @ x
                yield Match(node, (), linear)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        linear: Linear = match.plan
        if quantized_weight(linear) and not _is_table(linear):
            return Decline(Reason.ON_A_GRID, match.node)
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        linear: Linear = match.plan
        values = linear.weight if _is_table(linear) else _values(linear, rewriter)
        x = rewriter.insert_before(match.node, on_dynamic_grid, linear.data)
        rewriter.set_argument(match.node, linear.weight_position, values, same=True)
        rewriter.replace_input(match.node, linear.data, x)
        rewriter.record(f"{match.node.name}: weight in 8 bits, input at run time")


def _is_table(linear: Linear) -> bool:
    """True for a table that is on a grid already, with a scale per output."""
    weight = linear.weight
    table = any(row_of(user).lookup for user in weight.users)
    return table and weight.target is on_grid and weight.args[3:5] == (linear.out_axis, 0)


def _values(linear: Linear, rewriter: Rewriter) -> fx.Node:
    """The weight on a grid of 8 bits, with a scale per output."""
    axis, weight = linear.out_axis, linear.weight
    assert axis is not None
    name = str(weight.target) if weight.op == "get_attr" else linear.node.name
    exact = evaluate(rewriter.graph.module, weight)
    found, low = grid_of(exact, axis, 8, dtype=weight.meta["val"].dtype)
    scale = rewriter.attribute(f"{name}_scale", found)
    how = (axis, 0, low, top_of(8), "nearest")
    return rewriter.expression(on_grid, weight, scale, None, *how)
