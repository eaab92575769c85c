"""A pass of one's own: relu(relu(x)) = relu(x), matched, checked, rewritten and judged like any other.

    python -m examples.own_pass

An installed package offers such a pass by name through the entry-point group `normfold.passes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

import normfold
from normfold.ir import Graph
from normfold.ir.graph import op_name
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter, parse


@dataclass(frozen=True)
class DropDoubleRelu(Pass):
    """Read the first of two ReLUs in a row.

    Exact:    to the bit.
    Declines: output-exposed (the second ReLU names an output).
    """

    name: ClassVar[str] = "drop-double-relu"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            if op_name(node) == "relu" and op_name(_source(node)) == "relu":
                yield Match(node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if any(user.op == "output" for user in match.node.users):
            return Decline(Reason.OUTPUT_EXPOSED, match.node)
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        rewriter.replace(match.node, _source(match.node))
        rewriter.record(f"{match.path}: dropped")


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def main() -> None:
    """Run the pass between two of normfold's own, and print what each did."""
    net = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 2), nn.ReLU(), nn.ReLU()
    )
    graph = normfold.capture(net, (torch.randn(2, 8),))
    passes = [*parse("canonicalize"), DropDoubleRelu(), *parse("bake")]
    _, report = normfold.run(graph, passes, verify="each")
    for item in report.passes:
        print(f"{item.spec}: {item.rewrites} rewritten, {len(item.declined)} declined")
    print(report.why("5"))
    print("equivalent" if report.ok else "NOT equivalent")


if __name__ == "__main__":
    main()
