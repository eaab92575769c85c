"""What is known of the values of a graph: typed facts in one side table, beside the nodes.

A fact is a frozen dataclass, and a node has one of each kind at most. `Rewriter` keeps the table true: what stands
in for a value takes its facts, and an edit after which a node computes something else drops what was known of
its numbers. Facts of erased nodes go with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar
from weakref import WeakKeyDictionary

from torch import fx


@dataclass(frozen=True)
class Fact:
    """Base of every kind of fact.

    Attributes:
        of_numbers: it describes the numbers of the node's value, and is untrue of others. Otherwise it says what
            the node stands for.
    """

    of_numbers: ClassVar[bool] = True


F = TypeVar("F", bound=Fact)
_TABLE: WeakKeyDictionary[fx.Node, dict[type[Fact], Fact]] = WeakKeyDictionary()


def put(node: fx.Node, *facts: Fact) -> None:
    """Set facts of a node, each in place of an older one of its kind."""
    entries = _TABLE.setdefault(node, {})
    for fact in facts:
        entries[type(fact)] = fact


def get(node: fx.Node, kind: type[F]) -> F | None:
    """The fact of this kind, or None where nothing is known."""
    found = _TABLE.get(node, {}).get(kind)
    return found if isinstance(found, kind) else None


def drop(node: fx.Node, *kinds: type[Fact]) -> None:
    """Forget facts of these kinds; all that describe the numbers where no kind is given."""
    entries = _TABLE.get(node, {})
    for kind in kinds or [kind for kind in entries if kind.of_numbers]:
        entries.pop(kind, None)


def carry(source: fx.Node, target: fx.Node) -> None:
    """Give a node that computes what ``source`` computes its facts, besides those of kinds that it has."""
    for kind, fact in _TABLE.get(source, {}).items():
        _TABLE.setdefault(target, {}).setdefault(kind, fact)


def facts_of(node: fx.Node) -> tuple[Fact, ...]:
    """All facts of a node."""
    return tuple(_TABLE.get(node, {}).values())


def known(graph: fx.Graph, kind: type[F]) -> Iterator[tuple[fx.Node, F]]:
    """Nodes with a fact of this kind, in graph order."""
    for node in graph.nodes:
        found = get(node, kind)
        if found is not None:
            yield node, found
