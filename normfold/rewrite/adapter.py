"""Run a plain torch.fx pass (GraphModule in, PassResult or GraphModule out) inside a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.shapes import Shapes
from normfold.errors import PassError, last_line
from normfold.ir import Graph, facts
from normfold.ir.expressions import hoist
from normfold.ir.text import graph_text
from normfold.report import PassReport
from normfold.rewrite.base import Exactness, Pass
from normfold.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class FxPass(Pass):
    """An fx pass as a normfold pass: judged by the verifier like any other.

    Args:
        function: takes the GraphModule, edits it or returns a new one (`PassResult` is understood). Calls that it
            adds or edits are given their shapes. Parameters are the original's: it must not write into them.
    """

    name: ClassVar[str] = "fx-pass"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    function: Callable[[fx.GraphModule], Any]

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        start = time.perf_counter()
        before, nodes = graph_text(graph), {node.name: node for node in graph.nodes}
        calls = {node.name: _call(node) for node in graph.nodes}
        try:
            result = self.function(graph.module)
        except Exception as error:
            raise PassError(
                f"the fx pass `{self._title}` failed", found=f"{type(error).__name__}: {error}"
            ) from error
        module = getattr(result, "graph_module", result)
        if module is not None and not isinstance(module, fx.GraphModule):
            raise PassError(
                "an fx pass must return a GraphModule, a PassResult or None",
                found=repr(type(result)),
            )
        if module is not None:
            graph.module = module
        for node in graph.nodes:  # of a new module, by their names
            if nodes.get(node.name, node) is not node:
                facts.carry(nodes[node.name], node)
                if node.op == "placeholder" and "val" in nodes[node.name].meta:
                    node.meta.setdefault("val", nodes[node.name].meta["val"])
        edited = {node for node in graph.nodes if calls.get(node.name, _call(node)) != _call(node)}
        self._settle(graph, edited)
        report = PassReport(str(self), self.exactness.value)
        report.modified = graph_text(graph) != before
        if report.modified:  # nobody knows of which nodes
            Rewriter(graph).changed(*graph.nodes)
        report.seconds = time.perf_counter() - start
        return report

    @property
    def _title(self) -> str:
        return str(getattr(self.function, "__qualname__", self.function))

    def _settle(self, graph: Graph, edited: set[fx.Node]) -> None:
        """Find shapes, then parameter expressions, which have them; and check the graph."""
        outputs = len(pytree.tree_leaves(next(n for n in graph.nodes if n.op == "output").args))
        if outputs != len(graph.output_names):
            raise PassError(
                f"the fx pass `{self._title}` left {outputs} outputs instead of {len(graph.output_names)}",
                hint="a pass of one's own drops, renames and adds outputs by `rewriter.outputs`",
            )
        try:
            shapes = Shapes.of(*graph.nodes)
            shapes.complete(graph.module)
            for node in (
                graph.nodes
            ):  # other operands may have made another shape of it, and of what reads it
                if node.op == "call_function" and (
                    node in edited or edited & set(node.all_input_nodes)
                ):
                    known = _sizes(node)
                    shapes.infer(node)
                    edited |= {node} if _sizes(node) != known else set()
            hoist(graph.module.graph)
            graph.recompile()
        except Exception as error:
            raise PassError(
                f"the fx pass `{self._title}` left a graph that does not hold together",
                found=last_line(error),
            ) from error

    def __str__(self) -> str:
        return f"fx-pass{{function={self._title}}}"


def _call(node: fx.Node) -> tuple[Any, ...]:
    return node.target, node.args, node.kwargs


def _sizes(node: fx.Node) -> list[Any]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return [(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]
