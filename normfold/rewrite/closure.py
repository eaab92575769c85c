"""Maximum-weight closure: which of many entangled choices to make, all at once, by one minimum cut.

Choices imply each other, some are forbidden, some bring a gain, some pairs have a price. The best set is the
source side of a minimum cut (Picard 1976). Of equally good sets the smallest is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

import networkx as nx

_YES, _NO = "yes", "no"


class Closure:
    """A system of yes-or-no choices, each named by a hashable object."""

    def __init__(self) -> None:
        self._price: dict[tuple[Any, Any], float] = defaultdict(float)
        self._forced: set[tuple[Any, Any]] = set()

    def gain(self, choice: Hashable, weight: float) -> None:
        """Choosing ``choice`` brings ``weight``; a negative one is a price."""
        if weight > 0:
            self._price[_YES, choice] += weight
        elif weight < 0:
            self._price[choice, _NO] -= weight

    def imply(self, choice: Hashable, other: Hashable) -> None:
        """Whoever chooses ``choice`` chooses ``other``."""
        self._forced.add((choice, other))

    def forbid(self, choice: Hashable) -> None:
        """``choice`` cannot be made."""
        self._forced.add((choice, _NO))

    def price(self, choice: Hashable, other: Hashable, weight: float) -> None:
        """Choosing ``choice`` without ``other`` costs ``weight``."""
        self._price[choice, other] += weight

    def solve(self) -> set[Any]:
        """The chosen set of greatest total weight."""
        network = nx.DiGraph()
        network.add_nodes_from((_YES, _NO))
        for (tail, head), weight in self._price.items():
            network.add_edge(tail, head, capacity=weight)
        for tail, head in self._forced:  # an edge without capacity is never cut
            network.add_edge(tail, head)
            network[tail][head].pop("capacity", None)
        flow = nx.algorithms.flow.boykov_kolmogorov(network, _YES, _NO)
        source = _reachable(flow)
        return source - {_YES}


def _reachable(residual: nx.DiGraph) -> set[Any]:
    """What the source still reaches: the smallest of the minimum cuts."""
    seen, stack = {_YES}, [_YES]
    while stack:
        node = stack.pop()
        for other, edge in residual[node].items():
            if other not in seen and edge["capacity"] - edge["flow"] > 1e-9 * max(
                1.0, edge["flow"]
            ):
                seen.add(other)
                stack.append(other)
    return seen
