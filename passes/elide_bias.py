"""elide-bias: a bias that others can take, or that has no effect, goes.

key          softmax(q (k + b)^T) = softmax(q k^T), where no position turns k (rotary) and no norm reads it
value        A (v + b) = A v + b, as the rows of A sum to one: into the bias of the output projection
norm         x + b in front of an InstanceNorm, or of a GroupNorm of single channels, whose mean takes b off
linear       W (x + b) + c = W x + (c + W b), between two linear ops
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ir.provenance import layer_name
from normfold.ir.states import State
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.linear import Linear, linear_of
from normfold.ops.reads import uses
from normfold.ops.table import Kind, kind_of, norm_of, row_of
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.flow import Blocked, Coefficient, Flow, Vector
from normfold.rewrite.vanishing import Vanishing


@dataclass(frozen=True)
class ElideBias(Pass):
    """Remove biases of linear ops that a later bias can take, or that a softmax or a norm does not see.

    A bias goes only whole, and only where no op gets a bias that had none. One linear op for queries, keys and
    values keeps its bias: queries need their part. No preset runs it: it saves one addition per layer.

    Exact:    up to rounding.
    Declines: what keeps a shift from the biases (NF102 to NF113), no-gain.
    """

    name: ClassVar[str] = "elide-bias"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.nodes):
            linear = _biased(node)
            if linear is not None and _is_near(node):
                yield Match(node)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        linear = _biased(match.node)
        if linear is None:
            return Decline(Reason.NO_GAIN, match.node, "it has no bias any more")
        rank, dim = len(shape_of(match.node)), linear.out_dim
        ids = layout.channel(rank, dim, shape_of(match.node)[dim])
        assert linear.bias is not None
        transport = Vanishing(graph, padding="scale-only")
        try:
            flow = Flow(None, Coefficient(Vector.of(graph, linear.bias), ids))
            edits = transport.push(match.node, flow)
        except Blocked as error:
            return Decline(error.reason, error.node, error.detail)
        except LayoutError as error:
            return Decline(Reason.AXIS_MISMATCH, match.node, str(error))
        bare = next((other for other, _ in transport.absorbed if other.bias is None), None)
        if bare is not None:
            return Decline(
                Reason.NO_GAIN, bare.node, f"`{layer_name(bare.node)}` has no bias to take it"
            )
        into = ", ".join(f"`{layer_name(other.node)}`" for other, _ in transport.absorbed)
        return match.planned(edits, f"into {into}" if into else "no effect")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        linear = _biased(match.node)
        assert linear is not None
        assert linear.bias_position is not None
        for edit in match.plan:
            edit(rewriter)
        rewriter.set_argument(match.node, linear.bias_position, None)
        rewriter.record(f"{match.path}: {match.detail}")


def _biased(node: fx.Node) -> Linear | None:
    """A linear op with a bias that may be left out."""
    if kind_of(node) is not Kind.LINEAR or is_static(node):
        return None
    linear = linear_of(node)
    named = op_name(node) == "linear" or op_name(node).startswith("conv")
    return linear if named and linear is not None and linear.bias is not None else None


def _is_near(node: fx.Node) -> bool:
    """True if a reader, behind movements, may take a shift: keys, values, a norm, another linear op."""
    stack = [node]
    while stack:
        value = stack.pop()
        for user in {use.user for use in uses(value)}:
            if kind_of(user) is Kind.MOVE:
                stack.append(user)
            elif kind_of(user) is Kind.DOT and row_of(user).attention:
                if user.args[0] is not value:
                    return True
            elif kind_of(user) in (Kind.DOT, Kind.LINEAR) or norm_of(user, "channels"):
                return True
    return False
