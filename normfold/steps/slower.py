"""Which layers of an integer network are slower in integers than in floats, by one minimum cut.

A layer in integers saves what its ops take in floats less what they take in integers; a tensor that goes from one
kind to the other is converted, which has a price. Layers that kernels fuse (a convolution and the activation behind
it) choose together. What the cut proposes is measured before it is believed (`normfold.steps.placement`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import concrete
from normfold.ir.provenance import layer_name
from normfold.ops.integers import Plan, weighted
from normfold.ops.table import row_of
from normfold.rewrite.closure import Closure
from normfold.targets.profile import Profile

_INPUTS = ""  # the group of what is not made by a layer


@dataclass(frozen=True)
class Choice:
    """Groups of layers to leave in floats, in graph order, and the seconds of a run that this saves.

    Attributes:
        every: nothing remains in integers.
    """

    groups: tuple[tuple[str, ...], ...]
    saves: float
    every: bool = False

    @property
    def layers(self) -> Iterator[str]:
        """Of all groups."""
        return (layer for group in self.groups for layer in group)


def slower_in_integers(graph: Graph, found: Plan, floats: Profile, integers: Profile) -> Choice:
    """The layers that are better left in floats.

    Args:
        graph: its ops in the forms that have integer kernels.
        found: what runs in integers if everything may.
        floats, integers: profiles of the file in floats, and of that of the whole plan.
    """
    group = _groups(graph)
    members: dict[str, list[fx.Node]] = defaultdict(list)
    for node, name in group.items():
        members[name].append(node)
    all_of_them = {group[node] for node in found.integer}
    gains = {name: _gain(members[name], group, found, floats, integers) for name in all_of_them}
    prices = list(_borders(group, floats, integers))
    cut = Closure()
    for name in (_INPUTS, *members):
        if name in gains:
            cut.gain(name, gains[name])
        else:
            cut.forbid(name)
    glue = {name for name in gains if not any(weighted(node) for node in members[name])}
    for one, other, price in prices:
        for here, there in ((one, other), (other, one)):
            cut.price(here, there, price)
            if here in glue and there != _INPUTS:
                cut.imply(here, there)
    chosen = cut.solve() & all_of_them

    def value(groups: set[str]) -> float:
        crossed = sum(price for one, other, price in prices if (one in groups) != (other in groups))
        return sum(gains[name] for name in groups) - crossed

    return Choice(
        tuple(_layers(members[name]) for name in members if name in all_of_them - chosen),
        value(chosen) - value(all_of_them),
        not chosen,
    )


def every_group(graph: Graph, found: Plan) -> tuple[tuple[str, ...], ...]:
    """The layers of everything that runs in integers, grouped as they are chosen."""
    group = _groups(graph)
    members: dict[str, list[fx.Node]] = defaultdict(list)
    for node, name in group.items():
        members[name].append(node)
    runs = {group[node] for node in found.integer}
    return tuple(_layers(nodes) for name, nodes in members.items() if name in runs)


def _layers(nodes: list[fx.Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(layer_name, nodes)))


def _groups(graph: Graph) -> dict[fx.Node, str]:
    """The group of every op: its layer, or that of the maker where it alone reads a tensor element by element."""
    found: dict[fx.Node, str] = {}
    same: dict[str, str] = {}

    def root(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    for node in graph.nodes:
        if node.op != "call_function" or is_static(node):
            continue
        found[node] = layer_name(node)
        sources = [source for source in node.all_input_nodes if source in found]
        alone = len(sources) == 1 and list(sources[0].users) == [node]
        if alone and row_of(node).pointwise:
            one, other = root(found[node]), root(found[sources[0]])
            if one != other:
                same[one] = other
    return {node: root(name) for node, name in found.items()}


def _gain(
    nodes: list[fx.Node],
    group: dict[fx.Node, str],
    found: Plan,
    floats: Profile,
    integers: Profile,
) -> float:
    """Seconds that a group saves in integers, with the conversions inside it."""
    layers = _layers(nodes)
    border = {
        layer_name(node)
        for node in nodes
        if node in found.tensors and any(group.get(user) != group[node] for user in node.users)
    }
    spent = sum(integers.layers.get(layer, 0.0) for layer in layers)
    spent += sum(integers.conversions.get(layer, 0.0) for layer in layers if layer not in border)
    return sum(floats.layers.get(layer, 0.0) for layer in layers) - spent


def _borders(
    group: dict[fx.Node, str], floats: Profile, integers: Profile
) -> Iterator[tuple[str, str, float]]:
    """Pairs of groups between which a tensor goes, and the price of its conversion, which is
    one to other numbers and one to another layout; each tensor once a pair."""
    seen = set[tuple[fx.Node, str]]()
    for node, here in group.items():
        for source in node.all_input_nodes:
            value, there = source.meta.get("val"), group.get(source, _INPUTS)
            if is_static(source) or not isinstance(value, Tensor) or here == there:
                continue
            if (source, here) not in seen:
                seen.add((source, here))
                count = math.prod(map(concrete, value.shape))
                yield here, there, integers.conversion(count) + floats.conversion(count)
