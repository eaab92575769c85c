"""replace-layernorm: LayerNorm becomes a norm whose statistics are constants at inference.

layer_norm(x) * g + b  ->  x * a + c      per channel, in eval mode, whatever the kind

a = cov(x, y) / var(x), c = E[y] - a E[x], with y the LayerNorm's output on the samples: the affine that is
nearest to it. Every kind starts as this affine; they differ in what they are in training mode:

affine   x * a + c, both trained
bn       gamma (x - mu_B) / sqrt(var_B + eps) + beta, statistics of the batch
prepbn   lambda LN(x) + (1 - lambda) (BN(x) + eta x), lambda from 1 to 0 (Guo et al. 2024, arXiv 2405.11582)
un       w x / sigma + b, sigma a mean over past batches (Yang et al. 2022, arXiv 2208.01313)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from normfold.errors import UsageError
from normfold.ir import Graph, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.graph import shape_of
from normfold.ir.sites import AffineOf, Trainable
from normfold.ir.states import State
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.offline import KINDS, fits, offline_norm, selected, slots, write_affine


@dataclass(frozen=True)
class ReplaceLayernorm(Pass):
    """Replace LayerNorms by norms that fold away, each as the nearest channel affine of its own output.

    The affines are measured on ``graph.samples``. Train the result (`normfold distill`) before it is used.

    Options:
        to: kind of the norm in training, as in `normfold.nn`: ``affine``, ``bn``, ...
        norms: patterns of the sites to replace (``blocks.*.norm1|norm``); all when empty.
        ridge: added to var(x), relative to it, so that a dead channel gets no gain.

    Exact:    no: the function changes.
    Declines: not-per-channel, constant-norm, not-asked-for, no-samples.
    """

    name: ClassVar[str] = "replace-layernorm"
    exactness: ClassVar[Exactness] = Exactness.CHANGES_FUNCTION
    measures: ClassVar[bool] = True
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    to: str = "affine"
    norms: tuple[str, ...] = ()
    ridge: Annotated[float, Between(0)] = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to not in KINDS:
            raise UsageError(f"there is no norm `{self.to}`", hint=f"one of: {', '.join(KINDS)}")

    def match(self, graph: Graph) -> Iterable[Match]:
        found = slots(graph)
        chosen = [slot for slot in found if slot.per_channel and selected(slot, self.norms)]
        plans = dict(zip(chosen, fits(graph, chosen, self.ridge), strict=False))
        for slot in found:
            yield Match(slot.node, slot.sites, (slot, plans.get(slot)))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        slot, fit = match.plan
        if slot.obstacle is not None:
            return slot.obstacle  # type: ignore[no-any-return]
        if not selected(slot, self.norms):
            return Decline(Reason.NOT_ASKED_FOR, match.node, "`norms` does not name it")
        if fit is None:
            return Decline(Reason.NO_SAMPLES, match.node)
        return match.planned(match.plan, f"{self.to}, explains {fit.explained:.1%} of its output")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        slot, fit = match.plan
        norm = offline_norm(rewriter.graph, self.to, slot, fit)
        path = f"{match.path.replace('#', '_')}.{self.to}"
        scale, shift = write_affine(rewriter, norm, path)
        new = rewriter.insert_before(
            slot.result, channel_affine, slot.source, scale, shift, len(shape_of(slot.result)) - 1
        )
        facts.put(new, AffineOf(match.sites), Trainable(path))
        rewriter.record(f"{match.path}: {match.detail}")
        rewriter.replace(slot.result, new, same=False)
        rewriter.changed_behind(new)
