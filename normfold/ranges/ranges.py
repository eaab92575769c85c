"""Value ranges of tensors: measured on inputs, checked against the statistics of the norms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from normfold.graph import Graph
from normfold.graph.expressions import is_static
from normfold.graph.intervals import Interval, bounds, note_mean, range_of, set_range
from normfold.graph.ops import linear_of
from normfold.graph.placed import Placed
from normfold.target import Grids

# a measured interval this much wider or narrower than the derived one is reported
DISAGREEMENT = 8.0
_SHARES = [1.0 - 0.05 * step for step in range(15)]


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
    meter = _Meter(graph.module, device)
    with torch.no_grad():
        for leaves in inputs:
            meter.run(*leaves)
    means = {node: (total / meter.counts[node]).cpu() for node, total in meter.sums.items()}
    return {node: Measured(found, means.get(node)) for node, found in meter.intervals.items()}


def merge_ranges(
    measured: dict[fx.Node, Measured],
    derived: dict[fx.Node, Interval],
    joined: Collection[fx.Node] = (),
) -> dict[str, Any]:
    """Set the range of every tensor, within the bounds of its op.

    That is the measured range, for tensors in ``joined`` its union with the derived range, and the derived range
    where nothing was measured. The two fail in opposite directions: synthesised inputs do not reach all values of
    the training data, and statistics mislead where a tensor is not normally distributed. The union is never much
    worse than the better one.

    Returns:
        ``apart``: the tensors on which they disagree, by name, with the width of the measured range over that of
        the derived one; ``distance``: mean |log2| of that ratio over all tensors, None if none has both.
    """
    apart, ratios = {}, []
    for node in {**derived, **measured}:
        found, told = measured.get(node), derived.get(node)
        if found is not None and found.mean is not None:
            note_mean(node, found.mean)
        known = [found.interval] if found is not None else []
        if told is not None and (node in joined or not known):
            known.append(told)
        set_range(node, reduce(Interval.union, known).within(bounds(node)))
        if found is not None and told is not None:
            ratio = _width(found.interval) / _width(told)
            ratios.append(abs(math.log2(ratio)))
            if not 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
                apart[node.name] = ratio
    return {"apart": apart, "distance": sum(ratios) / len(ratios) if ratios else None}


def widen(
    graph: Graph, inputs: Sequence[Sequence[Tensor]], device: torch.device | str = "cpu"
) -> None:
    """Widen every range to hold the values on these inputs too."""
    for node, item in measure(graph, inputs, device).items():
        known = range_of(node)
        if known is not None:
            set_range(node, known.union(item.interval).within(bounds(node)))


def clip(
    graph: Graph,
    inputs: Sequence[Sequence[Tensor]],
    scheme: Grids,
    bits: int,
    device: torch.device | str = "cpu",
) -> None:
    """Narrow every interval to the share of it, from 1 to 0.3, whose grid has the least squared error.

    Below 8 bits a few large values are not worth the resolution that they cost all others.
    """
    clipper = _Clipper(graph.module, device, scheme, bits)
    with torch.no_grad():
        for leaves in inputs:
            clipper.run(*leaves)
    for node, errors in clipper.errors.items():
        interval, share = range_of(node), _SHARES[int(errors.argmin())]
        assert interval is not None
        set_range(node, Interval(share * interval.low, share * interval.high))


def distance(one: Mapping[Any, Interval], other: Mapping[Any, Interval]) -> float:
    """Mean |log2| of the ratio of the widths, over the tensors of both."""
    both = [node for node in one if node in other]
    ratios = (math.log2(_width(one[node]) / _width(other[node])) for node in both)
    return sum(map(abs, ratios)) / max(1, len(both))


def _width(interval: Interval) -> float:
    return max(max(interval.high, 0.0) - min(interval.low, 0.0), 1e-12)


class _Clipper(Placed):
    """Sums the squared errors of the grids of every tensor."""

    def __init__(
        self, module: fx.GraphModule, device: torch.device | str, scheme: Grids, bits: int
    ) -> None:
        super().__init__(module, device)
        self.scheme, self.bits = scheme, bits
        self.errors: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        interval = range_of(n) if isinstance(value, Tensor) else None
        if interval is not None:
            found = torch.tensor([self._error(value, interval, share) for share in _SHARES])
            self.errors[n] = self.errors[n] + found if n in self.errors else found
        return value

    def _error(self, value: Tensor, interval: Interval, share: float) -> float:
        ends = share * interval.low, share * interval.high
        scale, zero = self.scheme.grid(*ends, self.bits)
        rounded = torch.fake_quantize_per_tensor_affine(
            value.float(), scale, zero, *self.scheme.limits(self.bits)
        )
        return float((rounded - value).square().sum())


class _Meter(Placed):
    def __init__(self, module: fx.GraphModule, device: torch.device | str) -> None:
        super().__init__(module, device)
        self.intervals: dict[fx.Node, Interval] = {}
        self.sums: dict[fx.Node, Tensor] = {}
        self.counts: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("placeholder", "call_function") or is_static(n):
            return value
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value)
            seen = Interval(float(low), float(high))
            self.intervals[n] = self.intervals[n].union(seen) if n in self.intervals else seen
            linear = linear_of(n) if n.op == "call_function" else None
            if linear is not None:
                rest = [dim for dim in range(value.dim()) if dim != linear.out_dim]
                total = value.sum(rest, dtype=torch.float64)
                self.sums[n] = self.sums[n] + total if n in self.sums else total
                count = value.numel() // value.shape[linear.out_dim]
                self.counts[n] = self.counts.get(n, 0) + count
        return value
