"""merge-linear: linear ops in a row, and summed ones of one input, become one (`normfold.rewrite.merging`).

summed      (W x + b) + s (V x + c)    = (W + s V) x + (b + s c)      LoRA, RepVGG, ACNet, MobileOne
in a row    W2 (W1 x + b1) + b2        = (W2 W1) x + (W2 b1 + b2)     where that is not dearer
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static, sharers
from normfold.ir.provenance import layer_name
from normfold.ir.states import State
from normfold.ops.table import Kind, row_of
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.branch import sum_above
from normfold.rewrite.flow import Blocked
from normfold.rewrite.merging import Sum, chains, sums


@dataclass(frozen=True)
class MergeLinear(Pass):
    """Merge parallel linear ops (adapters, branches of training), and rows of them, into one.

    Behind `fold-affine`, which takes norms and factors out from between them. No preset runs it: a merged adapter
    cannot be exchanged, and weights that were trained apart may have a wider range together, which 8 bits feel.

    Options:
        copy_shared: a weight with several users may be copied; otherwise such ops stay apart.

    Exact:    up to rounding.
    Declines: output-reused, not-parallel, parameter-shared, no-gain.
    """

    name: ClassVar[str] = "merge-linear"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    stages: ClassVar[int] = 1  # what is one op now may be beside another

    copy_shared: bool = True

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if row_of(node).kind is Kind.ADD and not is_static(node) and sum_above(node) is None:
                yield from (Match(_place(item), plan=item) for item in sums(node))
        for node in list(graph.nodes):
            rows = chains(node)
            if len(rows) > 1:
                yield Match(node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if isinstance(match.plan, Blocked):
            return Decline(match.plan.reason, match.plan.node, match.plan.detail)
        if isinstance(match.plan, Sum):
            ops = [match.plan.base, *match.plan.other.ops]
            detail = f"into `{layer_name(match.plan.base.node)}`"
        else:
            rows = chains(match.node)[1:]
            cheap = [row for row in rows if row.merged_products <= row.products]
            if not rows:
                return Decline(Reason.NO_GAIN, match.node, "merged already")
            if not cheap:
                found = f"{rows[0].merged_products:,} weights in place of {rows[0].products:,}"
                return Decline(Reason.NO_GAIN, match.node, found)
            match = match.planned(cheap[-1])
            ops = list(cheap[-1].ops)
            detail = f"with `{layer_name(ops[0].node)}`"
        for op in ops:
            others = sharers(op.weight) - {op.node}
            if others and not self.copy_shared:
                return Decline(
                    Reason.PARAMETER_SHARED, op.node, f"also read by `{min(others).name}`"
                )
        return match.planned(match.plan, detail)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        match.plan.edit(rewriter)
        rewriter.record(f"{match.path}: {match.detail}")


def _place(item: Sum | Blocked) -> fx.Node:
    return item.leaf if isinstance(item, Sum) else item.node
