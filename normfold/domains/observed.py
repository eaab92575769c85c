"""What tensors are on inputs: their value ranges, and the means of what linear ops give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from normfold.domains.placed import Placed
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.intervals import Interval
from normfold.ops.linear import linear_of


@dataclass(frozen=True)
class Measured:
    """The value range of one tensor on inputs, and for the result of a linear op the mean per channel."""

    interval: Interval
    mean: Tensor | None = None


def measure(
    graph: Graph, inputs: Sequence[Sequence[Tensor]], device: torch.device | str = "cpu"
) -> dict[fx.Node, Measured]:
    """Run the graph on every tuple of inputs and note the range of each float tensor.

    Memory: one tuple's activations at a time.
    """
    intervals: dict[fx.Node, Interval] = {}
    sums: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node.op not in ("placeholder", "call_function") or is_static(node):
            return
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return
        low, high = torch.aminmax(value)
        seen = Interval(float(low), float(high))
        intervals[node] = intervals[node].union(seen) if node in intervals else seen
        linear = linear_of(node) if node.op == "call_function" else None
        if linear is not None:
            rest = [dim for dim in range(value.dim()) if dim != linear.out_dim]
            total = value.sum(rest, dtype=torch.float64)
            sums[node] = sums[node] + total if node in sums else total
            counts[node] = counts.get(node, 0) + value.numel() // value.shape[linear.out_dim]

    run = Evaluator(graph.module, Placed(device), watch)
    for leaves in inputs:
        run(*leaves)
    means = {node: (total / counts[node]).cpu() for node, total in sums.items()}
    return {node: Measured(found, means.get(node)) for node, found in intervals.items()}
