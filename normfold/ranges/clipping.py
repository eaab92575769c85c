"""Where an interval is cut so that its grid errs least: a few large values cost all others their resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from normfold.domains.placed import Placed
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator, Watch
from normfold.ir.grids import to_grid
from normfold.ir.intervals import Interval, range_of, set_range
from normfold.ops.integers import Plan, plan, with_kernels
from normfold.ranges.sensitivity import divergence, first_float
from normfold.target import Grids

_BINS, _ENDS = 4096, 64  # of histograms; places that an end of an interval may take
_POWERS = (1.5, 2.0, 3.0, None)  # of an error; None: nothing is cut
_ALIKE = (
    4 / 3
)  # inputs show no difference between cuts: the widest of them reaches most of what they lack


def clip(
    graph: Graph,
    inputs: Sequence[Sequence[Tensor]],
    grids: Grids,
    bits: int = 8,
    device: torch.device | str = "cpu",
) -> None:
    """Narrow every interval to the part of it on whose grid these inputs err least, or leave all as they are.

    The error of a tensor is the mean of |error|^p over a histogram: values inside err evenly up to half a step,
    values outside by their distance. Which p is right depends on the network (of 8-bit MobileNetV2 the KL is 0.039
    by 1.5, 0.116 by 3 and 0.138 unclipped; of a ViT it is 0.0027, 0.0008 and 0.0007), so the outputs decide: each
    is tried with all on grids that kernels take, and of those that diverge about as little as the best one the
    widest is taken.
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
    whole = {node: found for node in graph.nodes if (found := range_of(node)) is not None}
    cuts = [
        whole if power is None else _cut(whole, counts, power, grids, bits) for power in _POWERS
    ]
    errors = _divergences(graph, inputs, cuts, grids, bits, device)
    chosen = max(at for at, error in enumerate(errors) if error <= _ALIKE * min(errors))
    for node, interval in cuts[chosen].items():
        set_range(node, interval)


def _cut(
    whole: Mapping[fx.Node, Interval],
    counts: Mapping[fx.Node, Tensor],
    power: float,
    grids: Grids,
    bits: int,
) -> dict[fx.Node, Interval]:
    """Every interval as this power has it; as it is where no value was seen in it."""
    first, last = grids.limits(bits)
    made = dict(whole)
    for node, found in counts.items():
        if float(found.sum()):
            made[node] = _least_error(found, whole[node], last - first, grids.symmetric, power)
    return made


def _divergences(
    graph: Graph,
    inputs: Sequence[Sequence[Tensor]],
    cuts: Sequence[Mapping[fx.Node, Interval]],
    grids: Grids,
    bits: int,
    device: torch.device | str,
) -> list[float]:
    """How far the outputs are from those in floats, with each of these sets of intervals."""
    found = plan(graph, grids, with_kernels(graph, grids))
    rounded = [_rounded(found, cut, grids, bits) for cut in cuts]
    total, numbers = [0.0] * len(cuts), Placed(device)
    for leaves in inputs:
        exact = Evaluator(graph.module, numbers)(*leaves)
        for at, watch in enumerate(rounded):
            total[at] += _apart(Evaluator(graph.module, numbers, watch)(*leaves), exact)
    return [error if math.isfinite(error) else math.inf for error in total]


def _apart(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """How far answers diverge; of a network that gives no floats, how many differ."""
    mine, exact = ([x for x in side if isinstance(x, Tensor)] for side in (found, wanted))
    if any(x.is_floating_point() for x in exact):
        return divergence(first_float(mine), first_float(exact))
    differ = (x != y for x, y in zip(mine, exact, strict=True) if x.shape == y.shape)
    return sum(float(x.double().mean()) for x in differ if x.numel())


def _rounded(found: Plan, intervals: Mapping[fx.Node, Interval], grids: Grids, bits: int) -> Watch:
    """Puts on grids what a plan puts there: tensors, and weights of 8 bits."""
    limits = grids.limits(bits)
    tensors = {
        node: grids.grid(interval.low, interval.high, bits)
        for node, origin in found.tensors.items()
        if (interval := intervals.get(origin)) is not None and interval.finite
    }
    axes = {linear.weight: linear.out_axis for linear in found.linears}

    def watch(node: fx.Node, value: Any) -> Any:
        if node in axes:
            return to_grid(value, axes[node], 8).values.to(value)
        if node not in tensors or not isinstance(value, Tensor):
            return None
        scale, zero = tensors[node]
        steps = (value / scale).round().add_(zero).clamp_(*limits)
        return steps.sub_(zero).mul_(scale)

    return watch


def _least_error(
    counts: Tensor, interval: Interval, steps: int, symmetric: bool, power: float
) -> Interval:
    """The part of an interval, zero in it, on whose grid values with this histogram err least."""
    share = torch.arange(1, _ENDS + 1, dtype=torch.float64) / _ENDS
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    width = (interval.high - interval.low) / len(counts)
    values = interval.low + (torch.arange(len(counts), dtype=torch.float64) + 0.5) * width
    weight = counts / counts.sum()
    lows = share * low if low < 0 else torch.zeros(1, dtype=torch.float64)
    highs = share * high if high > 0 else torch.zeros(1, dtype=torch.float64)
    below = ((lows[:, None] - values).clamp_min(0) ** power * weight).sum(1)[:, None]
    above = ((values - highs[:, None]).clamp_min(0) ** power * weight).sum(1)[None]
    inside = ((values >= lows[:, None]) * weight).sum(1)[:, None]
    inside = (inside + ((values <= highs[:, None]) * weight).sum(1)[None] - 1).clamp_min(0)
    span = highs[None] - lows[:, None]
    if symmetric:  # one end is the other's negative, and half of the steps may go to nothing
        span = 2 * torch.maximum(highs[None].expand_as(span), -lows[:, None].expand_as(span))
    errors = below + above + inside * (span / steps / 2) ** power / (power + 1)
    place = int(errors.argmin())
    return Interval(float(lows[place // len(highs)]), float(highs[place % len(highs)]))
