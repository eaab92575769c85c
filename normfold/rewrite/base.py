"""A pass: a frozen dataclass whose fields are its options, and three steps kept apart.

`match` reads the graph and yields sites; `check` returns None or a `Decline` and may not change anything;
`rewrite` acts only through the `Rewriter`, and may not decline. What `check` planned travels in the match.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, get_type_hints

from torch import fx

from normfold.errors import PassError, UsageError
from normfold.graph import Graph, Site
from normfold.graph.expressions import deduplicate
from normfold.graph.provenance import module_path, source_line
from normfold.report import Applied, Declined, PassReport, Warned
from normfold.report.reasons import Reason
from normfold.rewrite.rewriter import Rewriter
from normfold.rewrite.spec import spec_of


class Exactness(Enum):
    """What a pass promises. Presets contain EXACT passes only."""

    EXACT = "exact"
    APPROXIMATE = "approximate"
    CHANGES_FUNCTION = "changes-function"


@dataclass
class Match:
    """One site that a pass may rewrite. ``plan`` carries what `check` found out to `rewrite`."""

    node: fx.Node
    sites: tuple[Site, ...] = ()
    plan: Any = None
    detail: str = ""
    warnings: list[Warned] = field(default_factory=list)
    partial: Decline | None = None
    stage: int = 0

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
    """Base of every pass. Subclasses set ``name`` and ``exactness``, and state the algebra in their docstring."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness] = Exactness.EXACT
    # 0: one sweep. Else `Match.stage` counts up to it while nothing more applies
    stages: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Refuse options that are out of bounds; a subclass that checks more calls this too."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for bound in getattr(hint, "__metadata__", ()):
                value = getattr(self, name)
                if isinstance(bound, Between) and not bound.low <= value <= bound.high:
                    high = "" if bound.high == math.inf else f" to {bound.high:g}"
                    raise UsageError(
                        f"option `{name.replace('_', '-')}` of pass `{self.name}` is out of bounds",
                        found=f"{value}",
                        hint=f"from {bound.low:g}{high or ' up'}",
                    )

    def match(self, graph: Graph) -> Iterable[Match]:
        """Yield every site of this pass, in graph order."""
        raise NotImplementedError

    def check(self, graph: Graph, match: Match) -> Decline | None:
        """None if the site can be rewritten exactly, else why not. Reads only."""
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        """Rewrite one site that `check` passed."""
        raise NotImplementedError

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        """Apply the pass to every site of ``graph``, in place, and report each outcome.

        ``limit`` stops after so many rewrites (for bisecting).
        """
        start = time.perf_counter()
        report = PassReport(str(self), self.exactness.value)
        rewriter = Rewriter(graph)
        stage = 0
        while stage <= self.stages:
            report.declined, before = [], len(rewriter.edits)
            for match in list(self.match(graph)):
                if report.rewrites == limit:
                    break
                if not getattr(match.node, "_erased", False):
                    match.stage = stage
                    self._visit(graph, match, rewriter, report)
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
        report.seconds = time.perf_counter() - start
        return report

    def _visit(self, graph: Graph, match: Match, rewriter: Rewriter, report: PassReport) -> None:
        decline = self.check(graph, match)
        if decline is not None:
            report.declined += declined(match, decline)
            return
        try:
            self.rewrite(match, rewriter)
        except Exception as error:
            raise PassError(
                f"`{self.name}` failed while rewriting a site that its check had passed",
                where=f"{match.path} {source_line(match.node)}".strip(),
                found=f"{type(error).__name__}: {error}",
                hint="this is a bug in the pass: report it, and leave the pass out with `--passes`",
            ) from error
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
