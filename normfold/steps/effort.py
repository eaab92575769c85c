"""More effort for 8 bits: several ways to put a network on grids, judged on inputs that none of them has seen.

A quarter of the inputs is held out. Each way (`WAYS`) finds its ranges on the others; what its integer network
errs on those held out, as divergence of the answers or else as noise, decides. The way that is taken is then done
with all of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from normfold.ir import Graph
from normfold.job import Quantize
from normfold.judge.agreement import Promise
from normfold.progress import Listener, Progress
from normfold.ranges.calibration import Inputs, find_ranges, samples_of
from normfold.rewrite import parse, run_pipeline

_HELD_OUT = 4  # one in so many inputs
_EQUALIZED = "equalize,restore,bake"
_LEARNED = "quantize-weights{rounding=feedback},quantize-weights{rounding=squant}"


@dataclass(frozen=True)
class Way:
    """Exact passes in front, and what puts weights on grids (None: as the scheme says).

    Attributes:
        effort: the least that tries it.
    """

    name: str
    passes: str = ""
    weights: str | None = None
    effort: int = 2


WAYS = (
    Way("as it is"),
    Way("equalized", _EQUALIZED),
    Way("learned rounding", weights=_LEARNED, effort=3),
    Way("equalized, learned rounding", _EQUALIZED, _LEARNED, 3),
)
Pipeline = Callable[[Quantize], str]


def best_way(
    graph: Graph,
    inputs: Inputs,
    step: Quantize,
    pipeline: Pipeline,
    say: Listener,
    **given: Any,
) -> tuple[Way, dict[str, float]]:
    """The way that errs least on inputs that are held out, and what each of them errs.

    Args:
        pipeline: the passes of a step that make integers.
        given: to `find_ranges`.
    """
    seen, held = _split(inputs)
    ways = [way for way in WAYS if way.effort <= step.effort]
    if step.weights is not None:
        ways = [way for way in ways if way.weights is None]
    if not held:
        return ways[0], {}
    errs: dict[str, float] = {}
    for way in ways:
        say(Progress("trying on held-out inputs", text=way.name))
        tried, rewritten = applied(way, graph, step)
        rewritten.samples = samples_of(rewritten, seen)
        found = find_ranges(rewritten, seen, tried, **given)
        result, _ = run_pipeline(found.graph, parse(pipeline(tried)))
        drift = Promise.of(held, None, graph, result).drift()
        noise = 10 ** (-float(drift["snr_db"]) / 10) if drift.get("snr_db") is not None else 0.0
        errs[way.name] = float(drift["kl"]) if drift.get("kl") is not None else noise
    return min(ways, key=lambda way: errs[way.name]), errs


def applied(way: Way, graph: Graph, step: Quantize) -> tuple[Quantize, Graph]:
    """The step and a graph of its own, as a way wants them."""
    tried = step if way.weights is None else replace(step, weights=way.weights)
    if not way.passes:
        return tried, graph.copy()
    return tried, run_pipeline(graph, parse(way.passes))[0]


def _split(inputs: Inputs) -> tuple[Inputs, list[tuple[Tensor, ...]]]:
    """Inputs to learn from, and those held out: whole batches, or rows of a single one."""
    batches = inputs.batches
    if len(batches) == 1:
        rows = min((len(x) for x in batches[0] if isinstance(x, Tensor) and x.dim()), default=0)
        if rows < _HELD_OUT:
            return inputs, []
        count = rows // _HELD_OUT
        seen = tuple(x[count:] for x in batches[0])
        return replace(inputs, batches=[seen], labels=None), [tuple(x[:count] for x in batches[0])]
    held = batches[::_HELD_OUT]
    rest = [batch for at, batch in enumerate(batches) if at % _HELD_OUT]
    return replace(inputs, batches=rest, labels=None), held
