"""Two networks of named tensors, run on one input: which tensors of a result are the original's.

They are matched by their values: a tensor of the result *agrees* with one of the original that has its shape, its
type and its numbers, up to four times the original's own error and a few ulps. It *stands for* one where the
result's outputs are right once it has the original's value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.provenance import module_path, source_line
from normfold.judge.comparison import FACTOR, distance, tensors
from normfold.targets.onnx_parts import OnnxNetwork
from normfold.targets.pt2 import export_pt2

_ULPS = 256.0  # of a tensor in the middle of a network: sums of many numbers, in another order


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
        """The outputs where one tensor is another; behind `run` on the same inputs."""

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
        later, known = {place}, {place: value}
        for node in self._graph.nodes:  # what is in front of it, or beside it, is as it was
            if later.intersection(node.all_input_nodes):
                later.add(node)
            elif node in self._values and node is not place:
                known[node] = self._values[node]
        run = Evaluator(self._graph.module)
        with torch.no_grad():
            return tensors(run.evaluate(*self._leaves(leaves), known=known))

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
        with warnings.catch_warnings():  # torch's own, on copying its pytrees
            warnings.simplefilter("ignore", FutureWarning)
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


class Matching:
    """What both networks make of the same inputs.

    Attributes:
        reference, own: the original's tensors in float64, and in their types; ``got``: the result's.
        agreeing: names of the result's tensors, and of those of the original that they agree with, one to one;
            inputs are each other's by their place.
        partner: the other way round.
        wrong: pairs of outputs that do not agree.

    Raises:
        UsageError: the result takes other inputs than the original.
    """

    def __init__(self, original: GraphNetwork, result: Network, leaves: Sequence[Tensor]) -> None:
        if len(original.inputs) != len(result.inputs):
            raise UsageError(
                "the result takes other inputs than the original",
                found=", ".join(result.inputs),
                hint=f"the original takes {', '.join(original.inputs)}",
            )
        self.original, self.result, self.leaves = original, result, leaves
        self.reference, self.own = original.float64(leaves), original.run(leaves)
        self.got = result.run(leaves)
        self._limits = {
            name: limit_of(x, self.own[name])
            for name, x in self.reference.items()
            if x.is_floating_point()
        }
        self.agreeing = dict(zip(result.inputs, original.inputs, strict=True))
        self._match()
        self.partner = {mine: name for name, mine in self.agreeing.items()}
        ends = zip(original.outputs, result.outputs, strict=False)
        self.wrong = [(mine, name) for mine, name in ends if not self.agrees(mine, self.got[name])]

    def agrees(self, mine: str, value: Tensor) -> bool:
        """True if a value is a tensor of the original."""
        expected = self.reference[mine]
        if expected.shape != value.shape:
            return False
        return distance(expected, value)[0] <= self._limits.get(mine, 0.0)

    def stands_for(self, mine: str, name: str) -> bool:
        """True if the outputs are right once the result has the original's tensor."""
        outputs = self.result.outputs_with(self.leaves, name, self.own[mine])
        known = zip(self.original.outputs, outputs, strict=False)
        return all(self.agrees(output, value) for output, value in known)

    def apart(self) -> tuple[dict[Any, list[str]], dict[Any, list[str]]]:
        """Tensors of floats that do not agree, by module, type and shape: of the original and of the result."""
        mine: dict[Any, list[str]] = {}
        others: dict[Any, list[str]] = {}
        for name in self._limits:
            if name not in self.partner:
                key = (self.original.path(name), *_kind(self.own[name]))
                mine.setdefault(key, []).append(name)
        for name, value in self.got.items():
            if name not in self.agreeing and value.is_floating_point():
                others.setdefault((self.result.path(name), *_kind(value)), []).append(name)
        return mine, others

    def _match(self) -> None:
        free: dict[Any, list[str]] = {}
        lengths = {name: float(self.reference[name].norm()) for name in self._limits}
        for name, length in lengths.items():
            if length and name not in self.original.inputs:  # a tensor of zeros says nothing
                free.setdefault(_kind(self.own[name]), []).append(name)
        for name, value in self.got.items():
            if name in self.agreeing or not value.is_floating_point():
                continue
            length, near = float(value.double().norm()), free.get(_kind(value), [])
            same = [
                mine
                for mine in near
                if abs(lengths[mine] - length) <= 2 * self._limits[mine] * lengths[mine]
                and self.agrees(mine, value)
            ]
            if same:
                path = self.result.path(name)
                mine = next((item for item in same if self.original.path(item) == path), same[0])
                self.agreeing[name] = mine
                near.remove(mine)


def network_of(result: Graph | Path) -> Network:
    """A graph, or an ONNX file, as a network of named tensors."""
    return GraphNetwork(result) if isinstance(result, Graph) else OnnxNetwork(result)


def limit_of(reference: Tensor, own: Tensor) -> float:
    """What |y - r| / |r| of a tensor of floats may be: four times the original's own, and a few ulps."""
    return FACTOR * distance(reference, own)[0] + _ULPS * torch.finfo(own.dtype).eps


def _kind(value: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return value.dtype, tuple(value.shape)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)
