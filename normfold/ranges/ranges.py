"""Value ranges of tensors: measured on inputs, checked against the statistics of the norms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from normfold.domains.observed import Measured, measure
from normfold.ir import Graph
from normfold.ir.intervals import (
    Interval,
    note_mean,
    note_read_mean,
    range_of,
    read_mean,
    set_range,
)
from normfold.ops.table import bounds

# a measured interval this much wider or narrower than the derived one is reported
DISAGREEMENT = 8.0


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


def distance(one: Mapping[Any, Interval], other: Mapping[Any, Interval]) -> float:
    """Mean |log2| of the ratio of the widths, over the tensors of both."""
    both = [node for node in one if node in other]
    ratios = (math.log2(_width(one[node]) / _width(other[node])) for node in both)
    return sum(map(abs, ratios)) / max(1, len(both))


def _width(interval: Interval) -> float:
    return max(max(interval.high, 0.0) - min(interval.low, 0.0), 1e-12)
