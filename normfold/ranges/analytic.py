"""Value ranges of tensors, derived from the statistics that the norms of a network store."""

from __future__ import annotations

from torch import fx

from normfold.domains.moments import Moments, OfMoments
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.intervals import Interval, note_read_mean
from normfold.ir.statistics import statistics_of
from normfold.ops.integers import weighted
from normfold.ops.table import bounds, norm_of


def moments(graph: Graph, inputs: Interval | None = None) -> dict[fx.Node, Moments]:
    """The moments of every tensor for which they can be derived.

    Args:
        graph: folded or not; its nodes carry the statistics of the norms (`normfold.ir.statistics`).
        inputs: the values that valid inputs take, where that is known.
    """
    domain = OfMoments(inputs)
    run = Evaluator(graph.module, domain)
    run(*(None for node in graph.nodes if node.op == "placeholder"))
    return {
        node: value
        for node, value in domain.found.items()
        if bool(value.low.isfinite().all()) and bool(value.high.isfinite().all())
    }


def derive(graph: Graph, inputs: Interval | None = None) -> dict[fx.Node, Interval]:
    """The range of every tensor that can be derived; the mean input of every linear op is noted with it."""
    found = moments(graph, inputs)
    for node in graph.nodes:
        linear = weighted(node)
        read = found.get(linear.data) if linear is not None else None
        if linear is not None and read is not None and linear.in_dim is not None:
            rest = [dim for dim in range(read.mean.dim()) if dim != linear.in_dim]
            note_read_mean(node, read.mean.double().mean(rest))
    return {node: value.interval.within(bounds(node)) for node, value in found.items()}


def assumed(graph: Graph) -> set[fx.Node]:
    """Tensors whose range rests on the assumption that a LayerNorm or RMSNorm gives a normal distribution."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        rests = norm_of(node, "shape", "channels") or any(
            part in found for part in node.all_input_nodes
        )
        if rests and statistics_of(node) is None:
            found.add(node)
    return found
