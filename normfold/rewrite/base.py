"""A pass: a frozen dataclass whose fields are its options, and three steps kept apart.

`match` reads the graph and yields sites; `check` reads too, and returns the site with its plan or a `Decline`;
`rewrite` acts only through the `Rewriter`, and may not decline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import Any, ClassVar, get_type_hints

from torch import fx

from normfold.errors import NormfoldError, PassError, UsageError
from normfold.ir import Graph, Site
from normfold.ir.expressions import deduplicate
from normfold.ir.provenance import module_path, source_line
from normfold.ir.states import State
from normfold.report import Applied, Declined, PassReport, Warned
from normfold.report.reasons import Reason
from normfold.rewrite.rewriter import Rewriter
from normfold.rewrite.spec import spec_of


class Exactness(Enum):
    """What a pass promises. Presets contain EXACT passes only."""

    EXACT = "exact"
    APPROXIMATE = "approximate"
    CHANGES_FUNCTION = "changes-function"


class Effect(Enum):
    """What a pass does to a graph besides rewriting sites of its own."""

    BAKES = "bakes"  # weights become tensors of their final types
    CONVERTS = (
        "converts"  # a norm becomes a cheaper one: its site is left where the pass declines it
    )
    STORES_INTEGERS = "stores-integers"  # weights become integers


@dataclass(frozen=True)
class Match:
    """One site that a pass may rewrite.

    Attributes:
        node: where it is.
        sites: what it stands for in reports.
        plan: what `match` and `check` found out, for `rewrite`.
        detail: of the rewrite, for the report.
        warnings: for the report, where the site is rewritten.
        partial: why a part of the site is left, where it is.
        stage: how often the pass has gone through the graph without finding anything (see `Pass.stages`).
    """

    node: fx.Node
    sites: tuple[Site, ...] = ()
    plan: Any = None
    detail: str = ""
    warnings: tuple[Warned, ...] = ()
    partial: Decline | None = None
    stage: int = 0

    def planned(self, plan: Any, detail: str = "", **more: Any) -> Match:
        """The same site with a plan."""
        return replace(self, plan=plan, detail=detail or self.detail, **more)

    @property
    def path(self) -> str:
        return self.sites[0].path if self.sites else module_path(self.node) or self.node.name


@dataclass(frozen=True)
class Decline:
    """Why a matched site is left alone: the reason, the node that blocks it, and a detail in words."""

    reason: Reason
    node: fx.Node | None = None
    detail: str = ""


@dataclass(frozen=True)
class Between:
    """Least and greatest value of an option: ``bits: Annotated[int, Between(2, 8)] = 8``."""

    low: float
    high: float = math.inf


@dataclass(frozen=True)
class Pass:
    """Base of every pass. Subclasses set ``name`` and ``exactness``, and state the algebra in their docstring.

    Attributes:
        requires: states that the graph must be in.
        ensures: states that the graph is in afterwards.
        ends: states that the graph is not in afterwards.
        effects: what else becomes of the graph, for what acts on it and not on names of passes.
        stages: 0: one sweep. Else `Match.stage` counts up to it while nothing more applies.
        measures: it reads `Graph.samples`, for which a user gives ``--data``.
        budget: of an APPROXIMATE pass: |y - r| / |r| that it may cost, where the user gives no ``--max-error``.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset()
    ensures: ClassVar[frozenset[State]] = frozenset()
    ends: ClassVar[frozenset[State]] = frozenset()
    effects: ClassVar[frozenset[Effect]] = frozenset()
    stages: ClassVar[int] = 0
    budget: ClassVar[float | None] = None
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse options that are out of bounds; a subclass that checks more calls this too."""
        for name, bound in _bounds(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if not bound.low <= value <= bound.high:
                high = "" if bound.high == math.inf else f" to {bound.high:g}"
                raise UsageError(
                    f"option `{name.replace('_', '-')}` of pass `{self.name}` is out of bounds",
                    found=f"{value}",
                    hint=f"from {bound.low:g}{high or ' up'}",
                )

    def match(self, graph: Graph) -> Iterable[Match]:
        """Yield every site of this pass, in graph order."""
        raise NotImplementedError

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        """The site with its plan if it can be rewritten, else why not. Reads only."""
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        """Rewrite one site that `check` passed."""
        raise NotImplementedError

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        """Apply the pass to every site of ``graph``, in place, and report each outcome.

        ``limit`` stops after so many rewrites (for bisecting).
        """
        start = time.perf_counter()
        require_order([self], graph.states)
        effects = tuple(sorted(effect.value for effect in self.effects))
        report = PassReport(str(self), self.exactness.value, effects=effects)
        rewriter = Rewriter(graph)
        stage = 0
        while stage <= self.stages:
            report.declined, before = [], len(rewriter.edits)
            for match in self._matches(graph):
                if report.rewrites == limit:
                    break
                if not getattr(match.node, "_erased", False):
                    self._visit(graph, replace(match, stage=stage), rewriter, report)
            # a rewrite may have made an earlier stage possible again
            stage = (
                0
                if self.stages and len(rewriter.edits) > before and report.rewrites != limit
                else stage + 1
            )
        report.edits, report.modified = rewriter.edits, bool(rewriter.edits)
        if report.modified:
            deduplicate(graph.module.graph)
            graph.recompile()
        graph.states = (graph.states - self.ends) | self.ensures
        report.seconds = time.perf_counter() - start
        return report

    def _matches(self, graph: Graph) -> list[Match]:
        try:
            found = list(self.match(graph))
        except NormfoldError:
            raise
        except Exception as error:
            raise self._broken("looking for sites", None, error) from error
        strange = next((item for item in found if not isinstance(item, Match)), None)
        if strange is not None:
            raise PassError(
                f"`{self.name}` found something else than a `Match`", found=repr(strange)
            )
        return found

    def _broken(self, doing: str, match: Match | None, error: Exception) -> PassError:
        at = "" if match is None else f"{match.path} {source_line(match.node)}".strip()
        return PassError(
            f"`{self.name}` failed while {doing}" + (" a site" if match is not None else ""),
            where=at or None,
            found=f"{type(error).__name__}: {error}",
            hint="this is a bug in the pass: report it, and leave the pass out with `--passes`",
        )

    def _visit(self, graph: Graph, match: Match, rewriter: Rewriter, report: PassReport) -> None:
        try:
            found = self.check(graph, match)
        except NormfoldError:
            raise
        except Exception as error:
            raise self._broken("checking", match, error) from error
        if isinstance(found, Decline):
            report.declined += declined(match, found)
            return
        if not isinstance(found, Match):
            raise PassError(
                f"`{self.name}` returned {found!r} from its check",
                where=f"{match.path} {source_line(match.node)}".strip(),
                hint="`check` returns the match, with its plan where it has one, or a `Decline`",
            )
        match = found
        try:
            self.rewrite(match, rewriter)
        except Exception as error:
            raise self._broken("rewriting", match, error) from error
        report.rewrites += 1
        report.warnings += match.warnings
        if match.partial is not None:
            report.declined += declined(match, match.partial)
        else:
            report.applied += [
                Applied(site.path, site.kind, match.detail) for site in match.sites
            ] or [Applied(match.path, "", match.detail)]

    def __str__(self) -> str:
        return spec_of(self)


@cache
def _bounds(kind: type[Pass]) -> list[tuple[str, Between]]:
    """The options of a pass that have bounds."""
    hints = get_type_hints(kind, include_extras=True).items()
    marks = [(name, mark) for name, hint in hints for mark in getattr(hint, "__metadata__", ())]
    return [(name, mark) for name, mark in marks if isinstance(mark, Between)]


def declined(match: Match, decline: Decline) -> list[Declined]:
    """The report lines of one declined match: one for each site that it carries."""
    node = decline.node if decline.node is not None else match.node
    reason = decline.reason
    at = f"{node.name} ({module_path(node)})" if module_path(node) else node.name
    return [
        Declined(
            site.path if site else match.path,
            site.kind if site else "",
            reason.code,
            reason.summary,
            decline.detail,
            at,
            source_line(node) or source_line(match.node),
            reason.remedy,
        )
        for site in (match.sites or (None,))
    ]


def require_order(passes: Sequence[Pass], states: frozenset[State]) -> None:
    """Refuse passes of which one wants what no pass in front of it makes.

    Raises:
        UsageError: names the pass, the one that is missing, and the one that undid it where there is one.
    """
    undone: dict[State, Pass] = {}
    for item in passes:
        for state in sorted(item.requires - states, key=lambda state: state.value):
            by = undone.get(state)
            raise UsageError(
                f"`{item.name}` wants a graph that is {state.value}, which `{state.made_by}` makes it",
                found=f"`{by.name}` in front of it undoes that"
                if by
                else f"no `{state.made_by}` in front of it",
                hint=f"put `{state.made_by}` in front of `{item.name}`",
            )
        undone |= dict.fromkeys(states & item.ends, item)
        states = (states - item.ends) | item.ensures
