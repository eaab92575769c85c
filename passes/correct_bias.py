"""correct-bias: subtract the mean error of a quantised linear op from its bias.

y' = W' x' + c  ->  c - (E[y'] - E[y])          per output channel, over samples and positions

analytic  E[y'] - E[y] = (W' - W) E[x], with E[x] from the norms' statistics (Nagel et al. 2019, section 4.2). The
          error of rounded activations is not included.
samples   measured front to back, each op on the outputs of the corrected ops in front of it; E[y] is the mean of
          the float network on the same samples (Finkelstein et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from normfold.domains.batches import Batches, changed, joined
from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ir.intervals import mean_shift, measured_mean
from normfold.ops.integer_ops import on_grid
from normfold.ops.integers import quantized_weight, weighted
from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, row_of
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Correct the biases of ops with integer weights, by ``graph.samples``.

    Options:
        heads: also correct ops whose result is an output of the network. A few samples estimate the mean of
            class scores badly, and correcting it has cost accuracy.
        limit: largest correction, in deviations of the channel.
        source: ``samples``, ``analytic``, or the former where there are any.

    Exact:    no: the function changes.
    Declines: no-samples, output-exposed.
    """

    name: ClassVar[str] = "correct-bias"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    measures: ClassVar[bool] = True

    heads: bool = False
    limit: Annotated[float, Between(0)] = 1.0
    source: Literal["auto", "samples", "analytic"] = "auto"

    def match(self, graph: Graph) -> Iterable[Match]:
        found = [
            node
            for node in graph.nodes
            if (linear := weighted(node)) is not None and quantized_weight(linear)
        ]
        wanted = {node for node in found if self.heads or not _returned(_biased(node))}
        if self._analytic(graph):
            known = ((node, mean_shift(node)) for node in wanted)
            shifts = {node: shift for node, shift in known if shift is not None}
        else:
            shifts = _measured(graph, wanted, self.limit)
        for node in found:
            yield Match(node, (), (node in wanted, shifts.get(node)))

    def _analytic(self, graph: Graph) -> bool:
        return self.source == "analytic" or (self.source == "auto" and not graph.sample_inputs())

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        wanted, shift = match.plan
        if not wanted:
            return Decline(Reason.OUTPUT_EXPOSED, match.node)
        if shift is None:
            text = "no norm's statistics tell its mean"
            if self.source == "samples" and not graph.sample_inputs():
                text = ""
            elif not self._analytic(graph):
                text = (
                    "`measure-ranges` in front of the passes that quantise notes what the mean was"
                )
            return Decline(Reason.NO_SAMPLES, match.node, text)
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, shift = match.node, match.plan[1]
        linear, behind = linear_of(node), _biased(node)
        assert linear is not None
        position, bias = linear.bias_position, linear.bias
        if behind is not node:
            position = next(at for at in (0, 1) if behind.args[at] is not node)
            bias = behind.args[position]  # type: ignore[assignment]
        measured = rewriter.constant((-shift).to(node.meta["val"].dtype), "shift")
        corrected = measured
        if bias is not None:
            grid = bias if bias.target is on_grid else None  # which the corrected bias is put on
            source = bias.args[0] if grid else bias
            corrected = rewriter.expression(aten.add.Tensor, source, measured)
            if grid:
                corrected = rewriter.expression(on_grid, corrected, *grid.args[1:])
        if position is None:
            behind_axis = (
                len(shape_of(node)) - 1 - linear.out_dim
            )  # of a product with a matrix on the left
            if behind_axis:
                shape = [linear.out_features, *[1] * behind_axis]
                corrected = rewriter.expression(aten.reshape.default, corrected, shape)
            users = list(node.users)
            result = rewriter.insert_after(node, aten.add.Tensor, node, corrected)
            for user in users:
                rewriter.replace_input(user, node, result)
        else:
            rewriter.set_argument(behind, position, corrected, same=True)
        rewriter.record(f"{node.name}: bias corrected")


def _biased(node: fx.Node) -> fx.Node:
    """The op that adds the bias: the sum behind a product that has no place for one, or the node itself."""
    linear, users = linear_of(node), list(node.users)
    if linear is None or linear.bias_position is not None or len(users) != 1:
        return node
    if linear.out_dim != len(shape_of(node)) - 1:  # a vector is along another axis
        return node
    behind = users[0]
    if row_of(behind).kind is not Kind.ADD or row_of(behind).inverts or behind.kwargs:
        return node
    sides = [side for side in behind.args if side is not node]
    vector = len(sides) == 1 and isinstance(sides[0], fx.Node) and is_static(sides[0])
    return behind if vector and shape_of(sides[0]) == (linear.out_features,) else node  # type: ignore[arg-type]


def _returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _measured(graph: Graph, wanted: set[fx.Node], limit: float) -> dict[fx.Node, Tensor]:
    samples = graph.sample_inputs()
    if not samples:
        return {}
    shifts: dict[fx.Node, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> Any:
        """The result without the op's mean error, for the ops behind it."""
        target = measured_mean(node) if node in wanted else None
        if target is None:
            return None
        linear = linear_of(node)
        assert linear is not None
        whole = joined(value, 0 if linear.out_dim else 1)
        rest = [dim for dim in range(whole.dim()) if dim != linear.out_dim]
        variance, mean = torch.var_mean(whole.double(), rest)
        most = limit * variance.sqrt()
        shifts[node] = shift = torch.minimum(torch.maximum(mean - target, -most), most)
        shift = shift.to(whole).reshape(
            [-1 if dim == linear.out_dim else 1 for dim in range(whole.dim())]
        )
        return changed(value, lambda part: part - shift)

    Evaluator(graph.module, Batches(Domain()), watch)(*zip(*samples, strict=True))
    return shifts
