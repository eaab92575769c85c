"""Bisect: the first pass whose result is over tolerance, then the first site within it, or else the file; and the
first layer that is another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from normfold.errors import NormfoldError
from normfold.ir import Graph
from normfold.judge.layers import compare_layers
from normfold.judge.runs import Run
from normfold.judge.verifier import Verifier
from normfold.progress import Listener, Progress, silent
from normfold.report import Check, PassReport
from normfold.report.layers import Layer


class Runnable(Protocol):
    """What bisect needs of a pass."""

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        """Apply at most ``limit`` rewrites."""


@dataclass(frozen=True)
class Culprit:
    """The first pass over tolerance and the rewrite in it that brought the error; or the file, where no pass does.

    Attributes:
        spec: the pass; empty where it is the file.
        site: empty when the pass does not work site by site.
        before: the last verdict that passed, ``after`` the first that did not.
        file: its name; empty where it is a pass.
        layer: the first that is over its limit, with its op and the user's line; None where none is by itself, or
            the file does not say which modules it is made of.
        result: what fails.
    """

    spec: str
    site: str
    detail: str
    before: Check | None
    after: Check
    file: str = ""
    layer: Layer | None = None
    result: Graph | Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the network."""
        data = asdict(replace(self, result=None))
        del data["result"]
        return data


@dataclass(frozen=True)
class Written:
    """A file of a result: how it is run, and the original's own export, by the kind of the check."""

    path: Path
    runs: Callable[[], Iterator[tuple[str, Run]]]
    plain: Callable[[], dict[str, Run]] = dict


def bisect(
    graph: Graph,
    passes: Sequence[Runnable],
    verifier: Verifier,
    say: Listener = silent,
    write: Callable[[Graph], Written | None] = lambda result: None,
) -> Culprit | None:
    """Find what breaks: None if every pass keeps the verdict, and so does the file.

    Passes run one by one, each judged in float64 until weights are baked, in their own dtype after. In the
    first bad one, a binary search over "apply only the first k rewrites" finds the rewrite.

    Args:
        write: gives the file of what the passes made, if there is one; it is judged where every pass is fine.

    Raises:
        ExportError, EnvironmentMissing: the file cannot be written, or not be run here.
    """
    current, verifier = graph.copy(), copy(verifier)
    verifier.brief = True
    before: Check | None = None
    for item in passes:
        step = current.copy()
        report = item.run(step)
        check = _judge(verifier, step)
        say(Progress(str(item), text="ok" if check.ok else "over tolerance"))
        if not check.ok:
            return _first_site(current, item, report, verifier, before, check)
        current, before = step, check
    written = write(current)
    return None if written is None else _file(written, verifier, before, say)


def _file(
    written: Written, verifier: Verifier, before: Check | None, say: Listener
) -> Culprit | None:
    own: dict[str, Run] = {}

    def plain(kind: str) -> Run | None:
        if not own:
            own.update(written.plain())
        return own.get(kind)

    for kind, run in written.runs():
        check = verifier.outputs(kind, run, plain=lambda kind=kind: plain(kind))  # type: ignore[misc]
        say(Progress(written.path.name, text="ok" if check.ok else "over tolerance"))
        if not check.ok:
            name = written.path.name
            layer = _first_layer(verifier.graph, written.path)
            return Culprit("", "", "", before, check, name, layer, written.path)
    return None


def _first_layer(original: Graph, result: Graph | Path) -> Layer | None:
    """The first layer that is over its limit, where layers can be told."""
    if isinstance(result, Graph) and result.entries:  # inputs are not those of the original
        return None
    if isinstance(result, Path) and result.suffix != ".onnx":
        return None
    try:
        return compare_layers(original, result).first
    except NormfoldError:  # a file of somebody else: what was found stands without
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
    step = graph.copy()
    last = item.run(step, limit=high) if report.rewrites else item.run(step)
    applied = last.applied[-1] if report.rewrites and last.applied else None
    return Culprit(
        str(item),
        applied.site if applied else "",
        applied.detail if applied else "",
        before,
        after,
        layer=_first_layer(verifier.graph, step),
        result=step,
    )
