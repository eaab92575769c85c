"""The smallest part of a network that computes something else than the original's part.

A part begins at tensors that agree, and ends at one that stands for the original's and does not agree (see
`normfold.judge.matching`): what it reads is right, and what it makes is wrong. The outputs of the whole always
stand for each other, so that there is one part at least. Parts come by their number of ops, the smallest first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from normfold.ir import Graph
from normfold.judge.inputs import KINDS, cases
from normfold.judge.matching import GraphNetwork, Matching, Network, network_of

_TRIED = 100  # tensors that may stand for one of the original


@dataclass(frozen=True)
class Part:
    """Ops of the original and of a result, from tensors that agree to one that does not.

    Attributes:
        inputs: pairs of names, of the original and of the result, with the value that both get.
        output: names of what comes out, of the original and of the result.
        ops: how many there are in both.
        op: what makes the output in the original, with its module and the user's line.
    """

    original: Network
    result: Network
    inputs: tuple[tuple[str, str, Tensor], ...]
    output: tuple[str, str]
    ops: tuple[int, int]
    op: str

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both as files, ``original`` and ``result``; returns their paths."""
        first, second = (
            folder / f"{name}{network.suffix}"
            for name, network in (("original", self.original), ("result", self.result))
        )
        self.original.write(first, {name: x for name, _, x in self.inputs}, self.output[0])
        self.result.write(second, {name: x for _, name, x in self.inputs}, self.output[1])
        return first, second


def failing_parts(graph: Graph, result: Graph | Path, seed: int = 0) -> Iterator[Part]:
    """Parts of a result that are wrong, the smallest first; nothing where no input shows that it is.

    Args:
        graph: the original, as captured.
        result: a graph or an ONNX file that takes the same inputs, and gives the same outputs.
    """
    original, network = GraphNetwork(graph), network_of(result)
    for kind in KINDS:
        (case, *_) = cases(graph, seed, kinds=(kind,))
        leaves = [leaf for leaf in case.leaves if isinstance(leaf, Tensor)]
        found = Matching(original, network, leaves)
        if found.wrong:
            yield from _parts(found)
            return


def _parts(found: Matching) -> Iterator[Part]:
    mine, others = found.apart()
    inner = ((a, b) for key in mine for a in mine[key] for b in others.get(key, []))
    parts = [_part(found, *pair) for pair in dict.fromkeys([*found.wrong, *inner])]
    tried = 0
    for part in sorted(parts, key=lambda part: sum(part.ops)):
        if part.output in found.wrong:
            yield part
        elif tried < _TRIED:
            tried += 1
            if found.stands_for(*part.output):
                yield part


def _part(found: Matching, mine: str, name: str) -> Part:
    first, before = _between(found.original, mine, found.partner)
    second, after = _between(found.result, name, found.agreeing)
    pairs = {item: found.partner[item] for item in found.own if item in before}
    pairs |= {found.agreeing[item]: item for item in found.got if item in after}
    given = tuple((a, b, found.own[a]) for a, b in pairs.items())
    path, op = found.original.path(mine), found.original.op(mine)
    words = f"`{path}`: {op}" if path else op
    ops = len(first), len(second)
    return Part(found.original, found.result, given, (mine, name), ops, words)


def _between(network: Network, name: str, stops: Collection[str]) -> tuple[set[str], set[str]]:
    """The tensors that one is made of, itself included, and those of ``stops`` where they begin."""
    seen, ends, stack = set[str](), set[str](), [name]
    while stack:
        item = stack.pop()
        if item in stops:
            ends.add(item)
        elif item not in seen:
            seen.add(item)
            stack += network.operands(item)
    return seen, ends
