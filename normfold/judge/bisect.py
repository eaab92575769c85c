"""Bisect: the first pass whose result is over tolerance, then the first site within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from normfold.ir import Graph
from normfold.judge.verifier import Verifier
from normfold.progress import Listener, Progress, silent
from normfold.report import Check, PassReport


class Runnable(Protocol):
    """What bisect needs of a pass."""

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        """Apply at most ``limit`` rewrites."""


@dataclass(frozen=True)
class Culprit:
    """The first pass over tolerance and the rewrite in it that brought the error.

    ``site`` is empty when the pass does not work site by site.
    """

    spec: str
    site: str
    detail: str
    before: Check | None
    after: Check


def bisect(
    graph: Graph,
    passes: Sequence[Runnable],
    verifier: Verifier,
    say: Listener = silent,
) -> Culprit | None:
    """Find what breaks: None if every pass keeps the verdict.

    Passes run one by one, each judged in float64 until weights are baked, in their own dtype after. In the
    first bad one, a binary search over "apply only the first k rewrites" finds the rewrite.
    """
    current = graph.copy()
    before: Check | None = None
    for item in passes:
        step = current.copy()
        report = item.run(step)
        check = _judge(verifier, step)
        say(Progress(str(item), text="ok" if check.ok else "over tolerance"))
        if not check.ok:
            return _first_site(current, item, report, verifier, before, check)
        current, before = step, check
    return None


def _judge(verifier: Verifier, graph: Graph) -> Check:
    return verifier.rounding(graph) if graph.baked else verifier.algebra(graph)


def _first_site(
    graph: Graph,
    item: Runnable,
    report: PassReport,
    verifier: Verifier,
    before: Check | None,
    after: Check,
) -> Culprit:
    low, high = 0, report.rewrites
    while high - low > 1:
        middle = (low + high) // 2
        step = graph.copy()
        item.run(step, limit=middle)
        check = _judge(verifier, step)
        if check.ok:
            low, before = middle, check
        else:
            high, after = middle, check
    if not report.rewrites:
        return Culprit(str(item), "", "", before, after)
    step = graph.copy()
    last = item.run(step, limit=high)
    applied = last.applied[-1] if last.applied else None
    return Culprit(
        str(item), applied.site if applied else "", applied.detail if applied else "", before, after
    )
