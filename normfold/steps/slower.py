"""Which layers of an integer network are slower in integers than in floats, by one minimum cut.

A layer in integers saves what its ops take in floats less what they take in integers; a tensor that goes from one
kind to the other is converted, which has a price. Layers that kernels fuse (a convolution and its activation)
choose together. What the cut proposes is measured before it is believed (`normfold.steps.placement`).
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
from normfold.ops.integers import Plan, fused_output, weighted
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


@dataclass(frozen=True)
class _Border:
    """A tensor that goes from one group to another, and the seconds that its conversion takes."""

    maker: str
    reader: str
    tensor: fx.Node
    price: float


def slower_in_integers(graph: Graph, found: Plan, floats: Profile, integers: Profile) -> Choice:
    """The layers that are better left in floats.

    Args:
        graph: its ops in the forms that have integer kernels.
        found: what runs in integers if everything may.
        floats, integers: profiles of the file in floats, and of that of the whole plan.
    """
    group, members = _groups(graph)
    every = {group[node] for node in found.integer}
    gains = {name: _gain(members[name], group, found, floats, integers) for name in every}
    borders = list(_borders(group, floats, integers))
    chosen = _cut(members, gains, borders)
    chosen |= set(_alone(every - chosen, chosen, borders, found))

    def value(groups: set[str]) -> float:
        crossed = [item for item in borders if (item.maker in groups) != (item.reader in groups)]
        return sum(gains[name] for name in groups) - sum(item.price for item in crossed)

    left = [_layers(members[name]) for name in members if name in every - chosen]
    return Choice(tuple(left), value(chosen) - value(every), not chosen)


def every_group(graph: Graph, found: Plan) -> tuple[tuple[str, ...], ...]:
    """The layers of everything that runs in integers, grouped as they are chosen."""
    group, members = _groups(graph)
    every = {group[node] for node in found.integer}
    return tuple(_layers(nodes) for name, nodes in members.items() if name in every)


def _cut(
    members: dict[str, list[fx.Node]], gains: dict[str, float], borders: list[_Border]
) -> set[str]:
    """The groups that are best in integers; what has no weights is there only between others that are."""
    cut = Closure()
    for name in (_INPUTS, *members):
        if name in gains:
            cut.gain(name, gains[name])
        else:
            cut.forbid(name)
    glue = {name for name in gains if not any(weighted(node) for node in members[name])}
    for item in borders:
        for here, there in ((item.maker, item.reader), (item.reader, item.maker)):
            cut.price(here, there, item.price)
            if here in glue and there != _INPUTS:
                cut.imply(here, there)
    return cut.solve() & gains.keys()


def _alone(left: set[str], chosen: set[str], borders: list[_Border], found: Plan) -> Iterator[str]:
    """Groups that read and give nothing but integers: the runtime puts their weights on grids of its own."""
    made = {fused_output(node) for node in found.integer}
    for name in left:
        reads = [item for item in borders if item.reader == name]
        gives = [item for item in borders if item.maker == name]
        if (
            gives
            and all(item.maker in chosen and item.tensor in made for item in reads)
            and all(item.reader in chosen for item in gives)
        ):
            yield name


def _layers(nodes: list[fx.Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(layer_name, nodes)))


def _groups(graph: Graph) -> tuple[dict[fx.Node, str], dict[str, list[fx.Node]]]:
    """The group of every op, and the ops of every group: its layer, or that of the maker where it alone reads a
    tensor element by element."""
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
    group = {node: root(name) for node, name in found.items()}
    members: dict[str, list[fx.Node]] = defaultdict(list)
    for node, name in group.items():
        members[name].append(node)
    return group, members


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


def _borders(group: dict[fx.Node, str], floats: Profile, integers: Profile) -> Iterator[_Border]:
    """Each tensor once for every group that reads it. What is converted goes to another layout, too."""
    seen = set[tuple[fx.Node, str]]()
    for node, here in group.items():
        for source in node.all_input_nodes:
            value, there = source.meta.get("val"), group.get(source, _INPUTS)
            if is_static(source) or not isinstance(value, Tensor) or here == there:
                continue
            if (source, here) not in seen:
                seen.add((source, here))
                count = math.prod(map(concrete, value.shape))
                price = integers.conversion(count) + floats.conversion(count)
                yield _Border(there, here, source, price)
