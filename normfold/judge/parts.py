"""The smallest part of a network that computes something else than the original's part.

Tensors are matched by their values on one input: a tensor of the result *agrees* with one of the original that has
its shape and its numbers, up to the limit of `normfold.judge.layers`. A tensor of the result *stands for* one of the
original where the result's outputs are right once it has the original's value. A part begins at tensors that agree,
and ends at one that stands for the original's and does not agree: what it reads is right, and what it makes is wrong.
The outputs of the whole always stand for each other, so that there is one part at least. Parts come by their number
of ops, the smallest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.provenance import module_path, source_line
from normfold.judge.comparison import distance, tensors
from normfold.judge.inputs import KINDS, cases
from normfold.judge.layers import limit_of
from normfold.targets.pt2 import export_pt2

_TRIED = 100  # tensors that may stand for one of the original


class Network(Protocol):
    """Named tensors and the ops between them."""

    suffix: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def path(self, name: str) -> str:
        """The module that a tensor is made in."""

    def op(self, name: str) -> str:
        """The op that makes a tensor."""

    def operands(self, name: str) -> list[str]:
        """The tensors that it is made of, without parameters."""

    def run(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every tensor by its name."""

    def outputs_with(self, leaves: Sequence[Tensor], name: str, value: Tensor) -> list[Tensor]:
        """The outputs where one tensor is another."""

    def write(self, path: Path, given: Mapping[str, Tensor], output: str) -> None:
        """Write what is between some tensors and another."""


class GraphNetwork:
    """A graph as a network of named tensors, run in its own types."""

    suffix = ".pt2"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = {node.name: node for node in graph.nodes}
        output = next(node for node in graph.nodes if node.op == "output")
        found = [leaf for leaf in pytree.tree_leaves(output.args[0]) if _is_tensor(leaf)]
        self.inputs = tuple(n.name for n in graph.nodes if n.op == "placeholder" and _is_tensor(n))
        self.outputs = tuple(leaf.name for leaf in found)
        self._values: dict[fx.Node, Any] = {}

    def path(self, name: str) -> str:
        return module_path(self._nodes[name])

    def op(self, name: str) -> str:
        """With the user's line."""
        return f"{op_name(self._nodes[name])} {source_line(self._nodes[name])}".strip()

    def operands(self, name: str) -> list[str]:
        return [n.name for n in self._nodes[name].all_input_nodes if self._is_data(n)]

    def run(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        self._values = self._evaluated(leaves, Domain())
        return self._named(self._values)

    def float64(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every tensor in float64, by its name."""
        return self._named(self._evaluated(leaves, Float64()))

    def outputs_with(self, leaves: Sequence[Tensor], name: str, value: Tensor) -> list[Tensor]:
        place = self._nodes[name]
        run = Evaluator(self._graph.module, watch=lambda n, _: value if n is place else None)
        return tensors(run(*self._leaves(leaves)))

    def write(self, path: Path, given: Mapping[str, Tensor], output: str) -> None:
        part, copies = fx.Graph(), dict[fx.Node, Any]()
        for name in given:
            copies[self._nodes[name]] = part.placeholder(name)
        wanted = self._made_of(output, given)
        for node in self._graph.nodes:
            if node in copies or node not in wanted:
                continue
            known = self._values.get(node)
            if isinstance(known, (bool, int, float)):  # a size, which is fixed in a part
                copies[node] = known
            else:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output((copies[self._nodes[output]],))
        module = fx.GraphModule(self._graph.module, part)
        export_pt2(Graph(module, tuple(given.values()), {}), path)

    def _evaluated(self, leaves: Sequence[Tensor], domain: Domain) -> dict[fx.Node, Any]:
        seen: dict[fx.Node, Any] = {}

        def watch(node: fx.Node, value: Any) -> None:
            if node.op != "get_attr":
                seen[node] = value.clone() if isinstance(value, Tensor) else value

        Evaluator(self._graph.module, domain, watch)(*self._leaves(leaves))
        return seen

    def _leaves(self, given: Sequence[Tensor]) -> list[Any]:
        """The flat inputs: the tensors given, and the other values of the capture."""
        values = iter(given)
        own = pytree.tree_leaves((self._graph.args, self._graph.kwargs))
        return [next(values) if isinstance(leaf, Tensor) else leaf for leaf in own]

    def _named(self, values: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
        return {
            node.name: value
            for node, value in values.items()
            if isinstance(value, Tensor) and self._is_data(node)
        }

    def _made_of(self, output: str, given: Mapping[str, Tensor]) -> set[fx.Node]:
        seen, stack = set[fx.Node](), [self._nodes[output]]
        while stack:
            node = stack.pop()
            if node in seen or node.name in given:
                continue
            seen.add(node)
            if not isinstance(self._values.get(node), (bool, int, float)):
                stack += node.all_input_nodes
        return seen

    def _is_data(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        sized = isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
        return not is_static(node) and not sized and node.op != "get_attr"


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


def failing_parts(graph: Graph, result: Network, seed: int = 0) -> Iterator[Part]:
    """Parts of a result that are wrong, the smallest first; nothing where no input shows that it is.

    Args:
        graph: the original, as captured.
        result: takes the same inputs, and gives the same outputs.
    """
    original = GraphNetwork(graph)
    for kind in KINDS:
        (case, *_) = cases(graph, seed, kinds=(kind,))
        leaves = [leaf for leaf in case.leaves if isinstance(leaf, Tensor)]
        search = _Search(original, result, leaves)
        if search.wrong:
            yield from search.parts()
            return


class _Search:
    def __init__(self, original: GraphNetwork, result: Network, leaves: Sequence[Tensor]) -> None:
        self.original, self.result, self.leaves = original, result, leaves
        self.reference, self.own = original.float64(leaves), original.run(leaves)
        self.got = result.run(leaves)
        self.limits = {
            name: limit_of(x, self.own[name]) for name, x in self.reference.items() if _is_real(x)
        }
        ends = zip(original.outputs, result.outputs, strict=False)
        self.wrong = [pair for pair in ends if not self._agrees(*pair, self.got[pair[1]])]
        self.agreeing = dict(zip(result.inputs, original.inputs, strict=True))
        self.agreeing |= self._matched()
        self.partner = {mine: name for name, mine in self.agreeing.items()}

    def parts(self) -> Iterator[Part]:
        pairs = dict.fromkeys([*self.wrong, *self._candidates()])
        found = sorted((self._part(*pair) for pair in pairs), key=lambda part: sum(part.ops))
        for part in found[:_TRIED]:
            if part.output in self.wrong or self._stands_for(*part.output):
                yield part
        for part in found[_TRIED:]:
            if part.output in self.wrong:
                yield part

    def _agrees(self, mine: str, name: str, value: Tensor) -> bool:
        """Whether a value of the result is the original's tensor; the name is for people."""
        expected = self.reference[mine]
        if expected.shape != value.shape:
            return False
        limit = self.limits.get(mine, 0.0)
        return distance(expected, value)[0] <= limit

    def _matched(self) -> dict[str, str]:
        """Tensors of the result, and the one of the original that each agrees with: one to one, in order."""
        free: dict[Any, list[str]] = {}
        for name in self.limits:
            free.setdefault(self._kind(self.own[name]), []).append(name)
        lengths = {name: float(self.reference[name].norm()) for name in self.limits}
        found: dict[str, str] = {}
        for name, value in self.got.items():
            if name in self.agreeing or not _is_real(value):
                continue
            length = float(value.double().norm())
            same = [
                mine
                for mine in free.get(self._kind(value), [])
                if mine not in self.original.inputs
                and abs(lengths[mine] - length) <= 1e-2 * lengths[mine]
                and self._agrees(mine, name, value)
            ]
            if same:
                path = self.result.path(name)
                mine = next((item for item in same if self.original.path(item) == path), same[0])
                found[name] = mine
                free[self._kind(value)].remove(mine)
        return found

    def _kind(self, value: Tensor) -> tuple[Any, ...]:
        return value.dtype, tuple(value.shape)

    def _candidates(self) -> Iterator[tuple[str, str]]:
        """Tensors of one module and one shape that do not agree."""
        by_path: dict[Any, list[str]] = {}
        for mine in self.limits:
            if mine not in self.partner:
                key = self.original.path(mine), self._kind(self.own[mine])
                by_path.setdefault(key, []).append(mine)
        for name, value in self.got.items():
            if name not in self.agreeing and _is_real(value):
                for mine in by_path.get((self.result.path(name), self._kind(value)), []):
                    yield mine, name

    def _part(self, mine: str, name: str) -> Part:
        first, before = _between(self.original, mine, self.partner.keys())
        second, after = _between(self.result, name, self.agreeing.keys())
        pairs = {other: self.partner[other] for other in self.own if other in before}
        pairs |= {self.agreeing[other]: other for other in self.got if other in after}
        given = tuple((a, b, self.own[a]) for a, b in pairs.items())
        path = self.original.path(mine)
        op = f"`{path}`: {self.original.op(mine)}" if path else self.original.op(mine)
        return Part(self.original, self.result, given, (mine, name), (len(first), len(second)), op)

    def _stands_for(self, mine: str, name: str) -> bool:
        """True if the outputs are right once the result has the original's tensor."""
        outputs = self.result.outputs_with(self.leaves, name, self.own[mine])
        known = zip(self.original.outputs, outputs, strict=False)
        return all(self._agrees(output, output, value) for output, value in known)


def _between(network: Network, name: str, stops: Any) -> tuple[set[str], set[str]]:
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


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point()
