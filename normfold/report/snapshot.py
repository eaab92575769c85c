"""The graph as text around its sites, before and after passes ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.provenance import call_path
from normfold.ir.text import node_lines
from normfold.report.around import Around
from normfold.report.objects import SiteStatus

_MOST = 64  # sites of a report: those that are left first
_ORDER = ("left", "kept", "converted", "gone")


@dataclass(frozen=True)
class Snapshot:
    """A graph as text, taken before passes change it.

    Attributes:
        lines: of each node, by its name.
        near: by module path, the names of its nodes, of what they read and of who reads them.
    """

    lines: dict[str, str]
    near: dict[str, frozenset[str]]

    @classmethod
    def of(cls, graph: Graph) -> Snapshot:
        """The snapshot of a graph."""
        found: dict[str, set[str]] = {}
        for node in graph.nodes:
            path = call_path(node)
            if path and not is_static(node):
                names = found.setdefault(path, set())
                names |= {x.name for x in (node, *node.all_input_nodes, *node.users)}
        near = {path: frozenset(names) for path, names in found.items()}
        return cls(node_lines(graph, parameters=False), near)


def around(before: Snapshot, after: Graph, sites: Sequence[SiteStatus]) -> list[Around]:
    """The surroundings of each site, in the order of the sites; of `_MOST` at most."""
    now = Snapshot.of(after)
    chosen = sorted(sites, key=lambda item: _ORDER.index(item.state))[:_MOST]
    made = []
    for item in sites:
        path = item.site.split("#")[0]
        names = before.near.get(path)
        if item in chosen and names:
            later = names | now.near.get(path, frozenset())
            made.append(
                Around(
                    item.site,
                    tuple(line for name, line in before.lines.items() if name in names),
                    tuple(line for name, line in now.lines.items() if name in later),
                )
            )
    return made
