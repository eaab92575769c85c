"""Run a plain torch.fx pass (GraphModule in, PassResult or GraphModule out) inside a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

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
            adds are given their shapes; one that it edits has to keep its own.
    """

    name: ClassVar[str] = "fx-pass"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    function: Callable[[fx.GraphModule], Any]

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        start = time.perf_counter()
        before, nodes = graph_text(graph), {node.name: node for node in graph.nodes}
        result = self.function(graph.module)
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
        _complete(graph)  # before: what has no shape is no parameter expression
        hoist(graph.module.graph)
        graph.recompile()
        report = PassReport(str(self), self.exactness.value)
        report.modified = graph_text(graph) != before
        if report.modified:  # nobody knows of which nodes
            Rewriter(graph).changed(*graph.nodes)
        report.seconds = time.perf_counter() - start
        return report

    def __str__(self) -> str:
        return f"fx-pass{{function={getattr(self.function, '__qualname__', self.function)}}}"


def _complete(graph: Graph) -> None:
    try:
        Shapes.of(*graph.nodes).complete(graph.module)
    except Exception as error:
        raise PassError(
            "an fx pass left a graph in which the shape of a call cannot be found",
            found=last_line(error),
        ) from error
