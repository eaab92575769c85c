"""Value ranges of tensors, derived from the statistics that the norms of a network store."""

from __future__ import annotations

from torch import fx

from normfold.domains.moments import Moments, OfMoments
from normfold.graph import Graph
from normfold.graph.evaluation import Evaluator
from normfold.graph.graph import op_name
from normfold.graph.integers import weighted
from normfold.graph.intervals import Interval, bounds, note_read_mean
from normfold.graph.ops import (
    NORM_OPS,
)
from normfold.graph.statistics import statistics_of

DEVIATIONS = 6.0  # how far from its mean a value may be: ranges that real data fill
_POINTS = 49
_FUNCTIONS = """relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid elu selu celu mish softplus
    log_sigmoid softsign threshold clamp clamp_min clamp_max exp abs square leaky_relu neg sqrt pow"""
_ELEMENTWISE = frozenset(_FUNCTIONS.split())
_PER_CHANNEL = {"group-norm", "instance-norm"}  # gain and bias stand along axis 1


def moments(graph: Graph, inputs: Interval | None = None) -> dict[fx.Node, Moments]:
    """The moments of every tensor for which they can be derived.

    Args:
        graph: folded or not; its nodes carry the statistics of the norms (`normfold.graph.statistics`).
        inputs: the values that valid inputs take, where that is known.
    """
    domain = OfMoments(inputs)
    Evaluator(
        graph.module,
        domain,
    )(*(None for node in graph.nodes if node.op == "placeholder"))
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
        rests = op_name(node) in NORM_OPS or any(part in found for part in node.all_input_nodes)
        if rests and statistics_of(node) is None:
            found.add(node)
    return found
