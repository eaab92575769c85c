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
from normfold.ir.intervals import Interval, note_mean, range_of, set_range
from normfold.ops.table import bounds
from normfold.target import Grids

# a measured interval this much wider or narrower than the derived one is reported
DISAGREEMENT = 8.0
_SHARES = [1.0 - 0.05 * step for step in range(15)]


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
    found: dict[fx.Node, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        interval = range_of(node) if isinstance(value, Tensor) else None
        if interval is not None:
            errors = torch.tensor(
                [_grid_error(value, interval, share, scheme, bits) for share in _SHARES]
            )
            found[node] = found[node] + errors if node in found else errors

    run = Evaluator(graph.module, Placed(device), watch)
    for leaves in inputs:
        run(*leaves)
    for node, errors in found.items():
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


def _grid_error(value: Tensor, interval: Interval, share: float, grids: Grids, bits: int) -> float:
    """Sum of the squared errors of a tensor on the grid of a share of its interval."""
    scale, zero = grids.grid(share * interval.low, share * interval.high, bits)
    rounded = torch.fake_quantize_per_tensor_affine(value.float(), scale, zero, *grids.limits(bits))
    return float((rounded - value).square().sum())
