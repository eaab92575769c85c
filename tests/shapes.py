"""What the nodes of a graph say of their shapes and types, against what the graph makes of its inputs'."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.shapes import Shapes
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator


def described(value: Any) -> list[Any]:
    """Sizes and type of each tensor, symbols as they are written; of a number only what it is."""
    return [
        ([str(size) for size in leaf.shape], leaf.dtype) if isinstance(leaf, Tensor) else str(leaf)
        for leaf in pytree.tree_leaves(value)
    ]


def untrue_shapes(graph: Graph) -> list[str]:
    """The nodes whose stored values are not what the graph gives from front to back, and both."""
    wrong: list[str] = []

    def watch(node: fx.Node, value: Any) -> None:
        stored, found = described(node.meta.get("val")), described(value)
        if stored != found:
            wrong.append(f"{node.format_node()}: {stored}, not {found}")

    run = Evaluator(graph.module, Shapes.of(*graph.nodes), watch)
    run(*(None for node in graph.nodes if node.op == "placeholder"))
    return wrong
