"""Value ranges of tensors: measured on inputs, checked against the statistics of the norms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from normfold.domains.observed import Measured, measure
from normfold.domains.placed import Placed
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.intervals import (
    Interval,
    note_mean,
    note_read_mean,
    range_of,
    read_mean,
    set_range,
)
from normfold.ops.table import bounds
from normfold.target import Grids

# a measured interval this much wider or narrower than the derived one is reported
DISAGREEMENT = 8.0
_BINS, _ENDS = 4096, 64  # of histograms; places that an end of an interval may take
_POWER = 1.5


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
        if found is not None and found.read is not None and read_mean(node) is None:
            note_read_mean(node, found.read)
        known = [found.interval] if found is not None else []
        if told is not None and (node in joined or not known):
            known.append(told)
        set_range(node, reduce(Interval.union, known).within(bounds(node)))
        if found is not None and told is not None and found.interval.finite:
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
    grids: Grids,
    bits: int = 8,
    device: torch.device | str = "cpu",
) -> None:
    """Narrow every interval to the part of it on whose grid these inputs err least.

    A few large values are not worth the resolution that they cost all others. The error is the mean of
    |error|^1.5 over a histogram: values inside err evenly up to half a step, values outside by their distance. Of
    the powers from 1 to 3 and percentiles from 99.9 to 99.995 it lost least on trained networks (MobileNetV2: KL
    0.075, by squares 0.12, unclipped 0.19).
    """
    counts: dict[fx.Node, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        interval = range_of(node) if isinstance(value, Tensor) else None
        if interval is not None and interval.low < interval.high and value.numel():
            found = torch.histc(value.float(), _BINS, interval.low, interval.high).double().cpu()
            counts[node] = counts[node] + found if node in counts else found

    run = Evaluator(graph.module, Placed(device), watch)
    for leaves in inputs:
        run(*leaves)
    first, last = grids.limits(bits)
    for node, found in counts.items():
        interval = range_of(node)
        assert interval is not None
        if float(found.sum()):
            set_range(node, _least_error(found, interval, last - first, grids.symmetric))


def _least_error(counts: Tensor, interval: Interval, steps: int, symmetric: bool) -> Interval:
    """The part of an interval, zero in it, on whose grid values with this histogram err least."""
    share = torch.arange(1, _ENDS + 1, dtype=torch.float64) / _ENDS
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    width = (interval.high - interval.low) / len(counts)
    values = interval.low + (torch.arange(len(counts), dtype=torch.float64) + 0.5) * width
    weight = counts / counts.sum()
    lows = share * low if low < 0 else torch.zeros(1, dtype=torch.float64)
    highs = share * high if high > 0 else torch.zeros(1, dtype=torch.float64)
    below = ((lows[:, None] - values).clamp_min(0) ** _POWER * weight).sum(1)[:, None]
    above = ((values - highs[:, None]).clamp_min(0) ** _POWER * weight).sum(1)[None]
    inside = ((values >= lows[:, None]) * weight).sum(1)[:, None]
    inside = (inside + ((values <= highs[:, None]) * weight).sum(1)[None] - 1).clamp_min(0)
    span = highs[None] - lows[:, None]
    if symmetric:  # one end is the other's negative, and half of the steps may go to nothing
        span = 2 * torch.maximum(highs[None].expand_as(span), -lows[:, None].expand_as(span))
    errors = below + above + inside * (span / steps / 2) ** _POWER / (_POWER + 1)
    place = int(errors.argmin())
    return Interval(float(lows[place // len(highs)]), float(highs[place % len(highs)]))


def distance(one: Mapping[Any, Interval], other: Mapping[Any, Interval]) -> float:
    """Mean |log2| of the ratio of the widths, over the tensors of both."""
    both = [node for node in one if node in other]
    ratios = (math.log2(_width(one[node]) / _width(other[node])) for node in both)
    return sum(map(abs, ratios)) / max(1, len(both))


def _width(interval: Interval) -> float:
    return max(max(interval.high, 0.0) - min(interval.low, 0.0), 1e-12)
