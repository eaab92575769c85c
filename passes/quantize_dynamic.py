"""quantize-dynamic: matrix products in integers, with the grid of each input found at run time.

y = x W + c  ->  (s_x Q_x) (Q_W s_W) + c        s_x from the smallest and largest value of this x

No ranges of activations are needed; each product costs one more pass over its input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.grids import to_grid
from normfold.ops.integer_ops import dynamic_matmul
from normfold.ops.integers import quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.rewrite import Effect, Exactness, Match, Pass, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Put the weights of linear layers on grids, and their inputs at run time. Convolutions stay as they are.

    Exact:    no: values are rounded.
    Declines: nothing.
    """

    name: ClassVar[str] = "quantize-dynamic"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            linear = weighted(node)
            if linear is None or linear.kernel or quantized_weight(linear):
                continue
            if linear.weight_position == 1 or linear.bias_position == 0:  # not W @ x
                yield Match(node, (), linear)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        linear: Linear = match.plan
        weight = evaluate(rewriter.graph.module, linear.weight)
        grid = to_grid(weight if linear.out_axis == 1 else weight.t(), 1, 8)
        name = str(linear.weight.target) if linear.weight.op == "get_attr" else match.node.name
        steps = rewriter.attribute(f"{name}_int8", grid.steps.contiguous())
        scale = rewriter.attribute(f"{name}_scale", grid.scale)
        result = rewriter.insert_before(match.node, dynamic_matmul, linear.data, steps, scale)
        if linear.bias is not None:
            result = rewriter.insert_before(match.node, aten.add.Tensor, result, linear.bias)
        rewriter.replace(match.node, result)
        rewriter.record(f"{match.node.name}: weight in 8 bits, input at run time")
