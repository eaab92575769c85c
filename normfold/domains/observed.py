"""What tensors are on inputs: their value ranges, and the means of what linear ops read and give."""

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
    """The value range of one tensor on inputs.

    Attributes:
        mean: of the result of a linear op, per channel, (C,) in float64.
        read: of what that op reads, per channel.
    """

    interval: Interval
    mean: Tensor | None = None
    read: Tensor | None = None


def measure(
    graph: Graph, inputs: Sequence[Sequence[Tensor]], device: torch.device | str = "cpu"
) -> dict[fx.Node, Measured]:
    """Run the graph on every tuple of inputs and note the range of each float tensor.

    Memory: one tuple's activations at a time.
    """
    intervals: dict[fx.Node, Interval] = {}
    calls = [node for node in graph.nodes if node.op == "call_function" and not is_static(node)]
    linears = {node: found for node in calls if (found := linear_of(node)) is not None}
    axes = {(node, found.out_dim) for node, found in linears.items()}
    axes |= {(found.data, found.in_dim) for found in linears.values() if found.in_dim is not None}
    wanted: dict[fx.Node, list[int]] = {}
    for node, dim in axes:
        wanted.setdefault(node, []).append(dim)
    sums: dict[tuple[fx.Node, int], Tensor] = {}
    counts: dict[tuple[fx.Node, int], int] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node.op not in ("placeholder", "call_function") or is_static(node):
            return
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return
        low, high = torch.aminmax(value)
        seen = Interval(float(low), float(high))
        intervals[node] = intervals[node].union(seen) if node in intervals else seen
        for axis in wanted.get(node, ()):
            key, rest = (node, axis), [dim for dim in range(value.dim()) if dim != axis]
            total = value.sum(rest, dtype=torch.float64)
            sums[key] = sums[key] + total if key in sums else total
            counts[key] = counts.get(key, 0) + value.numel() // value.shape[axis]

    run = Evaluator(graph.module, Placed(device), watch)
    for leaves in inputs:
        run(*leaves)
    means = {key: (total / counts[key]).cpu() for key, total in sums.items()}

    def measured(node: fx.Node) -> Measured:
        linear = linears.get(node)
        if linear is None:
            return Measured(intervals[node])
        read = None if linear.in_dim is None else means.get((linear.data, linear.in_dim))
        return Measured(intervals[node], means.get((node, linear.out_dim)), read)

    return {node: measured(node) for node in intervals}
