"""Bits of each layer's weights: measured harm, summed cost, and the choices that no other one beats.

A layer's formats are those that the runtime executes: a convolution in 8 bits or in floats, a matrix product also
in blocks of 4 bits. Layers that may stay in floats and whose results meet in a sum or a concatenation share a
format: in different ones the sum would leave the integers. `SIMULATED` is the paper's choice, which no runtime
executes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, row_of
from normfold.ranges.allocate import Choice, Option, frontier
from normfold.ranges.sensitivity import Layer

FLOAT = 32
CONVOLUTION, MATRIX, SIMULATED = (8, FLOAT), (4, 8, FLOAT), (2, 4, 8)
BLOCK = 32  # weights that share a scale in 4 bits


Cost = Callable[[Layer, int], float]


@dataclass(frozen=True)
class Allocation:
    """The frontier, and the layers of each of its positions: ``groups[i]`` has the paths that pick i is for."""

    groups: tuple[tuple[str, ...], ...]
    choices: tuple[Choice, ...]
    layers: tuple[Layer, ...]

    def bits(self, choice: Choice) -> dict[str, int]:
        """The bits of every layer."""
        pairs = zip(self.groups, choice.picks, strict=True)
        return {path: int(pick) for group, pick in pairs for path in group}


def size(layer: Layer, bits: int) -> float:
    """Bytes of the weights."""
    return layer.weights * bits / 8


def allocate(
    layers: Sequence[Layer], formats: Callable[[Layer], Sequence[int]], cost: Cost = size
) -> Allocation:
    """The frontier of cost against harm.

    Args:
        layers: measured (`normfold.ranges.sensitivity`) in every format that they may have.
        formats: of a layer, in bits; coupled layers share those that all of them have.
        cost: of a layer in a format.
    """
    groups = coupled(layers, formats)
    options = []
    for group in groups:
        shared = [bits for bits in formats(group[0]) if all(bits in formats(one) for one in group)]
        costs = {bits: sum(cost(layer, bits) for layer in group) for bits in shared}
        harms = {bits: sum(layer.harm.get(bits, 0.0) for layer in group) for bits in shared}
        options.append([Option(str(bits), costs[bits], harms[bits]) for bits in shared])
    paths = tuple(tuple(layer.path for layer in group) for group in groups)
    return Allocation(paths, tuple(frontier(options)), tuple(layers))


def executed(layer: Layer) -> Sequence[int]:
    """The formats that onnxruntime has kernels for."""
    return CONVOLUTION if layer.kernel else MATRIX


def pipeline(bits: dict[str, int], simulate: bool = False) -> str:
    """The passes that put every layer's weights on its grid; 4 bits in blocks, unless they are simulated."""
    parts = []
    for count in sorted({*bits.values()} - {FLOAT}):
        layers = "|".join(path for path, own in bits.items() if own == count)
        block = f"block={BLOCK} " if count == 4 and not simulate else ""
        rounding = "rounding=squant " if count < 8 else ""
        parts.append(f"quantize-weights{{bits={count} {block}{rounding}layers={layers}}}")
    return ",".join(parts)


def coupled(
    layers: Sequence[Layer], formats: Callable[[Layer], Sequence[int]]
) -> list[list[Layer]]:
    """Layers in groups that share a format, in graph order: a module called twice, and results that meet."""
    leader = {layer.node: layer.node for layer in layers}
    first: dict[str, fx.Node] = {}
    for layer in layers:
        leader[layer.node] = first.setdefault(layer.path, layer.node)

    def find(node: fx.Node) -> fx.Node:
        while leader[node] is not node:
            node = leader[node]
        return node

    for layer in (layer for layer in layers if FLOAT in formats(layer)):
        for meeting in _meetings(layer.node):
            for other in _makers(meeting):
                if other in leader and find(other) is not find(layer.node):
                    leader[find(other)] = find(layer.node)
    groups: dict[fx.Node, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(find(layer.node), []).append(layer)
    return list(groups.values())


def _meetings(node: fx.Node) -> list[fx.Node]:
    """Sums and concatenations that read the result of a linear op directly."""
    return [user for user in node.users if _meets(user)]


def _meets(user: fx.Node) -> bool:
    return row_of(user).kind is Kind.ADD or row_of(user).move.joins


def _makers(meeting: fx.Node) -> list[fx.Node]:
    return [source for source in meeting.all_input_nodes if linear_of(source) is not None]
