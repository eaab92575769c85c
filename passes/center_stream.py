"""center-stream: LayerNorm becomes RMSNorm where what it reads can be stored without its mean.

layer_norm(x) = rms_norm(P x)      P x = x - mean(x), the mean over the norm's features, eps the same
layer_norm(P x) = layer_norm(x)    so every norm that reads the stream may read P x instead
P (W x + c) = (P W) x + P c        so linear writers store P x for free

Where P cannot be absorbed, one explicit op centres the tensor, if enough norms gain from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument
from normfold.ir.sites import NormOf, norm_sites
from normfold.ir.states import State
from normfold.ops import groups as grouping
from normfold.ops.groups import Centred
from normfold.ops.reads import producer
from normfold.ops.table import is_norm, norm_of
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.centering import BIAS_COST, OP_COST, Centering, CentredMember
from normfold.rewrite.centred_parameters import center_constant, center_writer, correct_head
from normfold.rewrite.streams import Stream, streams, why_not

aten = torch.ops.aten


@dataclass(frozen=True)
class CenterStream(Pass):
    """Centre the writers of residual streams (and of private inputs of norms), and turn LayerNorms into RMSNorms
    (Jiang et al. 2023, arXiv 2305.14858). One minimum cut over the whole graph decides what is centred where.

    Options:
        op_cost: price of one explicit centring op, in units of what a norm of the same size gains.
        bias_cost: price of the addition that is left where a norm's bias could not be folded, likewise. Both
            defaults were measured in onnxruntime on x86 (benchmarks/norm_costs.py).
        untie: an embedding table that is also the head's weight may be copied; otherwise one centring op
            follows the embedding.
        correct_heads: such a table is centred, and the head's result corrected by a term of rank one: an
            addition as wide as the vocabulary instead of the centring op.

    Exact:    up to rounding.
    Declines: parameter-shared, not-per-channel, and every reason NF118 to NF124.
    """

    name: ClassVar[str] = "center-stream"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.CONVERTS})

    op_cost: Annotated[float, Between(0)] = OP_COST
    bias_cost: Annotated[float, Between(0)] = BIAS_COST
    untie: bool = False
    correct_heads: bool = False

    def match(self, graph: Graph) -> Iterable[Match]:
        centering = Centering(graph, self.op_cost, self.bias_cost, self.untie, self.correct_heads)
        found = streams(centering)
        chosen = {norm for stream in found for norm in stream.norms}
        for node in list(graph.nodes):
            if node in centering.norms and node not in chosen:
                yield Match(node, norm_sites(node), why_not(centering, node))
            elif is_norm(node, "layer-norm") and norm_sites(node) and node not in centering.norms:
                text = "its width differs at run time"
                yield Match(node, norm_sites(node), Decline(Reason.NOT_PER_CHANNEL, node, text))
            elif _is_group_norm(node) and not is_static(node):
                yield Match(node, norm_sites(node), Decline(Reason.SPANS_TOKENS, node))
        for stream in found:
            sites = tuple(site for norm in stream.norms for site in norm_sites(norm))
            yield Match(stream.norms[0], sites, stream, "rms_norm")

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        return match.plan if isinstance(match.plan, Decline) else match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        stream: Stream = match.plan
        copies: dict[CentredMember, fx.Node] = {}

        def centred(member: CentredMember) -> fx.Node:
            if member in stream.stored:
                return member.node
            if member not in copies:
                copies[member] = _center(member, rewriter)
            return copies[member]

        for member in stream.stored:
            if member.writer is not None:
                table = member.writer.weight
                centred_table = center_writer(rewriter, member.node, member.groups)
                for head in member.heads:
                    correct_head(rewriter, head, table, centred_table)
            for part in member.sources:
                if part not in stream.stored:
                    _reread(rewriter, member.node, part.node, centred(part))
            for value, groups in member.constants:
                constant = center_constant(rewriter, value, groups)
                rewriter.replace_input(member.node, value, constant)
            rewriter.changed(member.node)
            facts.put(member.node, Centred(member.groups))
        for norm in stream.norms:  # before any norm is replaced: it may be what another one reads
            if stream.input_of[norm] not in stream.stored:
                rewriter.replace_input(
                    norm, stream.input_of[norm].node, centred(stream.input_of[norm])
                )
        for norm in stream.norms:
            new = rewriter.insert_before(
                norm,
                aten.rms_norm.default,
                norm.args[0],
                argument(norm, "normalized_shape"),
                None,
                argument(norm, "eps"),
            )
            facts.put(new, NormOf(norm_sites(norm)))
            rewriter.record(f"{norm.name}: rms_norm")
            rewriter.replace(norm, new)


def _is_group_norm(node: fx.Node) -> bool:
    norm = norm_of(node)
    return norm is not None and norm.kind == "group-norm"


def _reread(rewriter: Rewriter, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """Make a member read the centred copy; a part of a split gets a split of its own."""
    split = producer(user)
    if split is user:
        rewriter.replace_input(user, old, new)
        return
    twin = rewriter.insert_before(user, split.target, *split.args, **split.kwargs)  # type: ignore[arg-type]
    rewriter.replace_input(twin, old, new)
    rewriter.infer(twin)
    rewriter.replace_input(user, split, twin)
    if not split.users:
        rewriter.erase(split)


def _center(member: CentredMember, rewriter: Rewriter) -> fx.Node:
    """One explicit op: x - mean(x)."""
    x, along = member.node, grouping.axes(member.groups)
    mean = rewriter.insert_after(x, aten.mean.dim, x, along, True)
    result = rewriter.insert_after(mean, aten.sub.Tensor, x, mean)
    facts.put(result, Centred(member.groups))
    rewriter.record(f"{x.name}: centred by an op")
    return result
