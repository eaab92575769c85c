"""What became of every norm: read off the final graph, not off what the passes claim."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from normfold.ir import Graph, Site
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, op_name
from normfold.ir.provenance import layer_name, source_line
from normfold.ir.sites import affine_sites, norm_sites
from normfold.ops.handwritten import own_statistic
from normfold.ops.table import BATCH_NORM_OPS, NORM_OPS, norm_of
from normfold.report import Declined, PassReport, SiteStatus
from normfold.report.reasons import Reason


def site_statuses(graph: Graph, reports: Sequence[PassReport]) -> list[SiteStatus]:
    """State of every site that canonicalize found, in graph order.

    A site is ``left`` while any node carries its affine, or if a pass declined to convert it; ``converted`` if
    its norm became a cheaper one; ``kept`` if its norm computes statistics at run time; else ``gone``.
    """
    carried = {site.path for node in graph.nodes for site in affine_sites(node)}
    running = {site.path: node for node in graph.nodes for site in norm_sites(node)}
    reasons = {declined.site: declined for item in reports for declined in item.declined}
    unconverted = {
        declined.site
        for item in reports
        if "converts" in item.effects
        for declined in item.declined
    }
    statuses = [
        _left(site.path, site.kind, reasons.get(site.path), site.line)
        if site.path in unconverted
        else _status(site, carried, running, reasons)
        for site in graph.sites.values()
    ]
    known = set(graph.sites)
    for declined in reasons.values():  # norms that canonicalize itself had to leave alone
        if declined.site not in known and declined.kind:
            statuses.append(_left(declined.site, declined.kind, declined, declined.line))
    return statuses + _by_input(graph, {status.site for status in statuses})


def _by_input(graph: Graph, taken: set[str]) -> list[SiteStatus]:
    """Norms of none of the known forms, which are no sites of any pass: each takes a statistic of its input."""
    found, known = list[SiteStatus](), set[fx.Node]()
    for node in graph.nodes:
        measured = own_statistic(node)
        if measured is None or measured in known:
            continue
        known.add(measured)
        path = free = layer_name(node)
        count = 1
        while free in taken:
            count += 1
            free = f"{path}#{count}"
        taken.add(free)
        detail = f"{Reason.OWN_STATISTICS.summary}; `{op_name(measured)}` of its input"
        code = Reason.OWN_STATISTICS.code
        found.append(SiteStatus(free, "input-norm", "kept", code, detail, source_line(node)))
    return found


def _status(
    site: Site, carried: set[str], running: dict[str, fx.Node], reasons: dict[str, Declined]
) -> SiteStatus:
    reason = reasons.get(site.path)
    if site.path in running:
        node = running[site.path]
        whole = site.path in carried or _has_affine(node)
        norm = norm_of(node, "shape", "channels")
        if site.kind != "rms-norm" and (norm is None or norm.kind != site.kind):
            detail = "RMSNorm, affine kept" if whole else "RMSNorm, no affine left"
            return SiteStatus(site.path, site.kind, "converted", "", detail, site.line)
        detail = "affine kept" if whole else "no affine left"
        code = reason.code if reason is not None and whole else ""
        return SiteStatus(site.path, site.kind, "kept", code, detail, site.line)
    if site.path in carried:
        return _left(site.path, site.kind, reason, site.line)
    return SiteStatus(site.path, site.kind, "gone", "", "", site.line)


def _left(path: str, kind: str, reason: Declined | None, line: str) -> SiteStatus:
    code = reason.code if reason is not None else ""
    detail = (
        "; ".join(filter(None, [reason.reason, reason.detail]))
        if reason is not None
        else "not folded"
    )
    return SiteStatus(path, kind, "left", code, detail, line)


def _has_affine(node: fx.Node) -> bool:
    names = {spec.name for spec in node.target._schema.arguments}  # type: ignore[union-attr]
    return any(argument(node, name) is not None for name in ("weight", "bias") if name in names)


def norm_nodes(graph: Graph) -> list[fx.Node]:
    """Every norm op of a captured graph that works on activations."""
    names = {*BATCH_NORM_OPS, *NORM_OPS}
    return [node for node in graph.nodes if op_name(node) in names and not is_static(node)]
