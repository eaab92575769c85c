"""What is known of the values of a graph: typed facts in one side table, beside the nodes.

A fact is a frozen dataclass, and a node has one of each kind at most. `Rewriter` keeps the table true: what stands
in for a value takes its facts, and an edit after which a node computes something else drops what was known of
its numbers. Facts of erased nodes go with them.

Every kind can be written as rows and tensors (`normfold.ir.fact_rows`), so its fields are numbers, texts, tensors,
and tuples and frozen dataclasses of such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from torch import fx

_KINDS: dict[str, type[Fact]] = {}


@dataclass(frozen=True)
class Fact:
    """Base of every kind of fact.

    Attributes:
        kind_name: the name of the kind in files, the same for ever. Every kind has one; a base of kinds, whose
            class has a leading underscore, may do without.
        of_numbers: it describes the numbers of the node's value, and is untrue of others. Otherwise it says what
            the node stands for.
        kept: it is written beside a model, for those who load the model: it is then still true, nothing else
            would find it again, and no rewrite is legal because of it alone, as files can be wrong.
    """

    kind_name: ClassVar[str]
    of_numbers: ClassVar[bool] = True
    kept: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name = vars(cls).get("kind_name")
        if name is None:
            if not cls.__name__.startswith("_"):
                raise TypeError(f"the kind of fact `{cls.__qualname__}` has no `kind_name`")
            return
        other = _KINDS.setdefault(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two kinds of facts are called `{name}`: {other} and {cls}")
        _KINDS[name] = cls

    def fits(self, node: fx.Node) -> bool:
        """True if it can be a fact of this node's value, by its shape; what a file says is asked."""
        return True


F = TypeVar("F", bound=Fact)
_TABLE: WeakKeyDictionary[fx.Node, dict[type[Fact], Fact]] = WeakKeyDictionary()


def kinds() -> Mapping[str, type[Fact]]:
    """Every kind of fact that was defined so far, by its name in files."""
    return MappingProxyType(_KINDS)


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
