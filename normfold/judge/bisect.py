"""Bisect: the first pass whose verdict fails, then the first site within it, or else the file; and the
first layer that is another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from normfold.errors import NormfoldError
from normfold.ir import Graph
from normfold.judge.half import allowed, noted
from normfold.judge.layers import compare_layers
from normfold.judge.rules import Judged, Rules
from normfold.judge.runs import Run
from normfold.judge.verifier import Verifier
from normfold.progress import Listener, Progress, silent
from normfold.report import Check, PassReport
from normfold.report.certificate import Certificate
from normfold.report.layers import Layer
from normfold.rewrite import Pass


@dataclass(frozen=True)
class Culprit:
    """The first pass whose verdict fails and the rewrite in it that brought the error; or the file, where no pass
    does; or the capture.

    Attributes:
        spec: the pass; empty where it is the file or the capture.
        site: empty when the pass does not work site by site.
        before: the last verdict that passed, ``after`` the first that did not; where the ``certificate`` fails,
            the float64 algebra ``after`` the same pass may have passed.
        file: its name; empty where it is a pass.
        layer: the first that is over its limit, with its op and the user's line; None where none is by itself, or
            the file does not say which modules it is made of.
        result: what fails.
        certificate: of the result of an exact pass before weights are baked.
        no_reproducer: why there is none, where one was asked for and could not be made.
    """

    spec: str
    site: str
    detail: str
    before: Check | None
    after: Check
    file: str = ""
    layer: Layer | None = None
    result: Graph | Path | None = None
    certificate: Certificate | None = None
    no_reproducer: str = ""

    @property
    def words(self) -> str:
        """What fails, in a line."""
        if self.file:
            return f"every pass keeps the verdict, {self.file} does not"
        if not self.spec:
            return "the captured graph does not compute what the network computes"
        return f"{self.spec}: {self.site or 'the pass as a whole'} {self.detail}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the network."""
        data = asdict(replace(self, result=None))
        del data["result"]
        return data


@dataclass(frozen=True)
class Written:
    """A file of a result: how it is run, and the original's own export, by the kind of the check; types of half
    precision in it, and what those may cost (None: nothing)."""

    path: Path
    runs: Callable[[], Iterator[tuple[str, Run]]]
    plain: Callable[[str], Run | None] = lambda kind: None
    halves: frozenset[str] = frozenset()
    half_budget: float | None = None


def bisect(
    graph: Graph,
    passes: Sequence[Pass],
    rules: Rules,
    say: Listener = silent,
    write: Callable[[Graph], Written | None] = lambda result: None,
) -> Culprit | None:
    """Find what breaks: None if the capture and every pass keep the verdict, and so does the file.

    Passes run one by one, each judged by the rules of a conversion. In the first bad one, a binary search over
    "apply only the first k rewrites" finds the rewrite.

    Args:
        write: gives the file of what the passes made, if there is one; it is judged where every pass is fine.

    Raises:
        ExportError, EnvironmentMissing: the file cannot be written, or not be run here.
    """
    verifier = copy(rules.verifier)
    verifier.brief = True
    rules = replace(rules, verifier=verifier)
    captured = verifier.capture()
    if not captured.ok:
        return Culprit("", "", "", None, captured)
    current = graph.copy()
    before: Check | None = None
    for index, item in enumerate(passes):
        step = current.copy()
        report = item.run(step)
        rules.ran(index, report)
        found = rules.judge(step)
        say(Progress(str(item), text="ok" if found.ok else "over tolerance"))
        if not found.ok:
            return _first_site(current, item, report, rules, before, found)
        current, before = step, found.check
    written = write(current)
    return None if written is None else _file(written, verifier, rules.budget, before, say)


def _file(
    written: Written, verifier: Verifier, budget: float | None, before: Check | None, say: Listener
) -> Culprit | None:
    budget = allowed(written.halves, written.half_budget, budget)
    for kind, run in written.runs():
        check = verifier.outputs(kind, run, budget, partial(written.plain, kind))
        say(Progress(written.path.name, text="ok" if check.ok else "over tolerance"))
        if not check.ok:
            name, check = written.path.name, noted(check, written.halves, verifier.graph)
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


def _first_site(
    graph: Graph,
    item: Pass,
    report: PassReport,
    rules: Rules,
    before: Check | None,
    after: Judged,
) -> Culprit:
    low, high = 0, report.rewrites
    while high - low > 1:
        middle = (low + high) // 2
        step = graph.copy()
        item.run(step, limit=middle)
        found = rules.judge(step)
        if found.ok:
            low, before = middle, found.check
        else:
            high, after = middle, found
    step = graph.copy()
    last = item.run(step, limit=high) if report.rewrites else item.run(step)
    applied = last.applied[-1] if report.rewrites and last.applied else None
    return Culprit(
        str(item),
        applied.site if applied else "",
        applied.detail if applied else "",
        before,
        after.check,
        layer=_first_layer(rules.verifier.graph, step),
        result=step,
        certificate=after.certificate,
    )
