"""equalize: the channels between two linear ops get weights of the same size on both sides.

W2 f(W1 x + c)  =  (W2 S) f(S^-1 W1 x + S^-1 c)        S > 0 diagonal, f positively homogeneous (none, ReLU, ...)

s_c = sqrt(r1_c / r2_c) with r1 the largest |W1| of an output channel and r2 the largest |W2| of that input: then
both are sqrt(r1 r2) (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction").
With a depthwise convolution between two others this goes from pair to pair, front to back; repeat it until nothing
moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from normfold.ir import Graph
from normfold.ops.integers import weighted
from normfold.ops.layout import LayoutError
from normfold.ops.linear import linear_of
from normfold.report import PassReport
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.absorb import into_output
from normfold.rewrite.balance import coefficient, into_readers, largest, largest_read
from normfold.rewrite.flow import Blocked, Flow


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels so that the weights that write and read them are equally large.

    Options:
        sweeps: how often, front to back.
        limit: largest factor, and the smallest is its reciprocal.

    Exact:    up to rounding.
    Declines: what keeps a positive scale from its readers (nonlinear-neighbour, output-exposed, ...).
    """

    name: ClassVar[str] = "equalize"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    sweeps: Annotated[int, Between(1)] = 4
    limit: Annotated[float, Between(1)] = 1e4

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        report = super().run(graph, limit)
        for _ in range(self.sweeps - 1):
            left = None if limit is None else limit - report.rewrites
            again = super().run(graph, left)
            report.declined = again.declined
            report.add(again)
        return report

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            if weighted(node) is not None:
                yield Match(node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        linear = linear_of(match.node)
        assert linear is not None
        written = largest(graph, linear, written=True)
        try:
            read = largest_read(graph, match.node, linear.out_dim)
            factors = (written / read).sqrt().clamp(1 / self.limit, self.limit)
            factors[(written == 0) | (read == 0)] = 1.0
            edits = into_readers(graph, match.node, linear.out_dim, factors)
            inverse = coefficient(factors, match.node, linear.out_dim).inverse()
            return match.planned([into_output(linear, Flow(inverse)), *edits])
        except Blocked as error:
            return Decline(error.reason, error.node, error.detail)
        except LayoutError as error:
            return Decline(Reason.AXIS_MISMATCH, match.node, str(error))

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        for edit in match.plan:
            edit(rewriter)
        rewriter.record(f"{match.node.name}: equalised")
