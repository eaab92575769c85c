"""What the nodes of a graph say of their shapes and types, against what the graph makes of its inputs'."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.shapes import Shapes
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator


class Describer:
    """Sizes and type of each tensor, in words; symbols for sizes that data decide are numbered as they come."""

    def __init__(self) -> None:
        self._symbols: dict[str, str] = {}

    def __call__(self, value: Any) -> list[Any]:
        return [
            ([self._text(size) for size in leaf.shape], leaf.dtype)
            if isinstance(leaf, Tensor)
            else self._text(leaf)
            for leaf in pytree.tree_leaves(value)
        ]

    def _text(self, size: Any) -> str:
        return re.sub(r"\bu\d+\b", self._number, str(size))

    def _number(self, found: re.Match[str]) -> str:
        return self._symbols.setdefault(found[0], f"data{len(self._symbols)}")


def untrue_shapes(graph: Graph) -> list[str]:
    """The nodes whose stored values are not what the graph gives from front to back, and both."""
    wrong: list[str] = []
    ours, theirs = Describer(), Describer()

    def watch(node: fx.Node, value: Any) -> None:
        if isinstance(value, fx.GraphModule):  # a graph within the graph
            return
        stored, found = ours(node.meta.get("val")), theirs(value)
        if stored != found:
            wrong.append(f"{node.format_node()}: {stored}, not {found}")

    run = Evaluator(graph.module, Shapes.of(*graph.nodes), watch)
    run(*(None for node in graph.nodes if node.op == "placeholder"))
    return wrong
