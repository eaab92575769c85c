"""Networks put into half precision, and how far they are then from float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.domains.half import Strict
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import fetch
from normfold.ir.graph import op_name
from normfold.judge.comparison import distance
from normfold.judge.inputs import TYPICAL, cases
from normfold.rewrite import parse, run_pipeline
from normfold.targets.typed import Typed, lower

# what rounding leaves: 11 bits of float16, 8 of bfloat16, and a few layers
NEAR = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
PIPELINE = "canonicalize,restore,bake"


def x(*shape: int, seed: int = 3) -> Tensor:
    """A random input."""
    return torch.randn(*(shape or (2, 6, 8)), generator=torch.Generator().manual_seed(seed))


@dataclass
class Lowered:
    """A baked network, and the same in half precision."""

    graph: Graph
    typed: Typed

    @property
    def why(self) -> dict[str, str]:
        """Why each island is one, by op and node."""
        return {f"{island.op}:{island.node}": island.why for island in self.typed.islands}

    @property
    def islands(self) -> list[str]:
        return [island.op for island in self.typed.islands]

    def ops(self) -> Counter[str]:
        return Counter(op_name(n) for n in self.typed.graph.nodes if n.op == "call_function")

    def casts(self) -> list[tuple[str, torch.dtype]]:
        """What is cast (the node, or the parameter), and to which type."""
        casts = [node for node in self.typed.graph.nodes if op_name(node) == "to"]
        return [(str(source(node).target), node.meta["val"].dtype) for node in casts]

    def dtype(self, op: str) -> set[torch.dtype]:
        """The types that an op is run in."""
        nodes = [node for node in self.typed.graph.nodes if op_name(node) == op]
        assert nodes, f"there is no {op}"
        return {dtype for node in nodes for dtype in types(node)}

    def stored(self) -> dict[str, torch.dtype]:
        """The type of every parameter."""
        module = self.typed.graph.module
        nodes = [node for node in self.typed.graph.nodes if node.op == "get_attr"]
        return {str(node.target): fetch(module, str(node.target)).dtype for node in nodes}

    def run(self, *leaves: Any) -> list[Tensor]:
        """Flat outputs, every step rounded to its type; the fake types of every node are the true ones."""
        return Evaluator(self.typed.graph.module, Strict(), faithful)(*leaves)

    def error(self, *leaves: Any) -> float:
        """The largest |y - r| / |r|, against float64, of outputs that have kept their types."""
        expected = pytree.tree_leaves(Evaluator(self.graph.module, Float64())(*leaves))
        got, types = self.run(*leaves), [x.dtype for x in outputs(self.graph, leaves)]
        assert [x.dtype for x in got] == types
        return max(distance(a, b)[0] for a, b in zip(expected, got, strict=True))


def faithful(node: fx.Node, value: Any) -> None:
    """Refuse nodes whose fake value is not of the type that they compute."""
    found = [x.dtype for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
    assert found == [x.dtype for x in values(node)], node.format_node()


def outputs(graph: Graph, leaves: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad():
        results = fx.Interpreter(graph.module).run(*leaves, enable_io_processing=False)
    return list(pytree.tree_leaves(results))


def source(node: fx.Node) -> fx.Node:
    found = node.args[0]
    assert isinstance(found, fx.Node)
    return found


def values(node: fx.Node) -> list[Tensor]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def types(node: fx.Node) -> list[torch.dtype]:
    return [value.dtype for value in values(node) if value.is_floating_point()]


def lowered(
    net: nn.Module | Graph,
    *given: Any,
    dtype: torch.dtype = torch.float16,
    dynamic: Any = "batch",
    keep: Sequence[str] = (),
    islands: bool = True,
    inputs: list[tuple[Any, ...]] | None = None,
    pipeline: str = PIPELINE,
) -> Lowered:
    """``net`` in half precision, measured on ``inputs``, or on what the verifier makes up.

    A graph is one that was baked before: of another result, to save the time of a capture.
    """
    graph = net
    if isinstance(graph, nn.Module):
        graph, _ = run_pipeline(capture(graph.eval(), given, dynamic=dynamic), parse(pipeline))
    tried = inputs or [case.leaves for case in cases(graph, kinds=TYPICAL)]
    return Lowered(graph, lower(graph, dtype, tried, keep, islands))
