"""fold-affine: move every channel affine into the weights around it.

For an affine y = a x + b (one a and b per channel, or for all), tried for all sites before the next is tried:

1. backward: the producer of x makes a x + b            W' = a W, c' = a c + b
2. branch:   a x + b beside a convolution (or linear) of the same x, summed: the centre tap takes a
3. forward:  every reader of y computes f(a x + b)      W' = W diag(a), c' = c + W b
4. split:    the scale backward, the shift forward, or the reverse with b / a
5. partial:  the scale forward, one addition left, where zero padding makes that the cheapest
6. bias:     of a norm whose gain must stay, forward or into the bias of the norm beside it (`split-norms`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.facts import Fact
from normfold.ir.graph import shape_of
from normfold.ir.sites import affine_sites
from normfold.ir.states import State
from normfold.ops import layout
from normfold.ops.scalars import Scalar, scalar_of
from normfold.ops.table import Kind, norm_of, row_of
from normfold.report import Warned
from normfold.rewrite import Between, Caution, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.absorb import Edit
from normfold.rewrite.branch import merge_branch
from normfold.rewrite.flow import Blocked, Coefficient, Flow, Vector, require_divisible
from normfold.rewrite.transport import Transport

aten = torch.ops.aten


@dataclass(frozen=True)
class Partial(Fact):
    """An affine of which the scale is folded: why the shift is not."""

    kind_name: ClassVar[str] = "partial"
    of_numbers: ClassVar[bool] = False
    why: str


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold channel affines (BatchNorm, LayerScale, norm gains, constants) and scalars into linear ops.

    Options:
        direction: ``both``, ``backward`` (into producers only) or ``forward`` (into readers only).
        max_gain: larger scales fold too, and are warned about: they may overflow in half precision.
        zero_padding: what a shift does at a zero-padded convolution: ``cheapest``, ``map`` (precomputed bias
            map, fixed sizes), ``pad`` (pad with -b/a) or ``scale-only`` (leave one addition).
        copy_shared: a weight with several users may be copied; otherwise such sites are declined.
        untie: an embedding table that is also the head's weight may be copied too.
        split_norms: fold a norm's bias even where its gain must stay: an RMSNorm has a gain and no bias.

    Exact:    up to rounding, in eval mode.
    Declines: every reason NF102 to NF117.
    """

    name: ClassVar[str] = "fold-affine"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})
    stages: ClassVar[int] = 7  # each way for all sites, before the next way; the last one sums up

    direction: Literal["both", "backward", "forward"] = "both"
    max_gain: Annotated[float, Between(1)] = 1e4
    zero_padding: Literal["cheapest", "map", "pad", "scale-only"] = "cheapest"
    copy_shared: bool = True
    untie: bool = False
    split_norms: bool = False

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.module.graph.nodes):
            if is_static(node):
                continue
            if row_of(node).kind is Kind.AFFINE or (affine_sites(node) and scalar_of(node)):
                yield Match(node, affine_sites(node))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        attempt = _Attempt(graph, match.node, self)
        blocked: dict[str, Blocked] = {}
        ways = list(attempt.ways())
        for way in ways if match.stage == self.stages else ways[match.stage : match.stage + 1]:
            try:
                edits, how = way()
            except Blocked as error:
                blocked[way.__name__] = error
                continue
            partial = None
            if how == "partial":
                partial = Decline(Reason.PARTIAL, match.node, attempt.why_not_forward())
            elif how == "bias":
                partial = attempt.why_gain_stays(match)
            return match.planned(edits, how, warnings=attempt.warnings(match), partial=partial)
        left = facts.get(match.node, Partial)
        if left is not None:
            return Decline(Reason.PARTIAL, match.node, left.why)
        last_word = match.stage == self.stages and self.direction != "both"
        if last_word and isinstance(_both_ways(self).check(graph, match), Match):
            return Decline(Reason.DIRECTION, match.node)
        return _summary(blocked, match)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node = match.node
        for edit in match.plan:
            edit(rewriter)
        if match.partial is None and node.users:  # a merged branch has no readers left
            rewriter.replace(node, _source(node))
        rewriter.record(f"{match.path}: {match.detail}")


def _both_ways(options: FoldAffine) -> FoldAffine:
    return replace(options, direction="both")


class _Attempt:
    """The ways that one affine may go."""

    def __init__(self, graph: Graph, node: fx.Node, options: FoldAffine) -> None:
        self.graph, self.node, self.options = graph, node, options
        self.x, scalar = _source(node), scalar_of(node)
        self.per_channel = scalar is None
        if scalar is not None:
            everywhere = layout.channel(len(shape_of(node)), 0, 1)
            coefficient = Coefficient(_vector(graph, scalar), everywhere)
            self.scale = None if scalar.how == "plus" else coefficient
            self.shift = coefficient if scalar.how == "plus" else None
            return
        _, scale, shift, dim = node.args
        assert isinstance(dim, int)
        ids = layout.channel(len(shape_of(node)), dim, shape_of(node)[dim])
        self.scale = (
            Coefficient(Vector.of(graph, scale), ids) if isinstance(scale, fx.Node) else None
        )
        self.shift = (
            Coefficient(Vector.of(graph, shift), ids) if isinstance(shift, fx.Node) else None
        )

    def ways(self) -> Iterable[Callable[[], tuple[list[Edit], str]]]:
        backward = self.options.direction in ("both", "backward")
        forward = self.options.direction in ("both", "forward")
        if backward:
            yield self.backward
            if self.per_channel:
                yield self.branch
        if forward:
            yield self.forward
        if backward and forward and self.scale is not None and self.shift is not None:
            yield self.scale_back_shift_on
            yield self.shift_back_scale_on
        if forward and self.scale is not None and self.shift is not None and not self._of_norm:
            yield self.scale_on_shift_left
        if forward and self._of_norm and self.options.split_norms and self.shift is not None:
            yield self.shift_on_gain_left

    def backward(self) -> tuple[list[Edit], str]:
        return self._pull(self._transport(), Flow(self.scale, self.shift)), "backward"

    def forward(self) -> tuple[list[Edit], str]:
        return self._transport().push(self.node, Flow(self.scale, self.shift)), "forward"

    def scale_back_shift_on(self) -> tuple[list[Edit], str]:
        transport = self._transport()
        forward = transport.push(self.node, Flow(None, self.shift))
        return forward + self._pull(
            transport, Flow(self.scale, None)
        ), "scale backward, shift forward"

    def shift_back_scale_on(self) -> tuple[list[Edit], str]:
        transport = self._transport()
        forward = transport.push(self.node, Flow(self.scale, None))
        return forward + self._pull(
            transport, Flow(None, self._inner())
        ), "shift backward, scale forward"

    def branch(self) -> tuple[list[Edit], str]:
        return merge_branch(self.node), "merged into a parallel branch"

    def scale_on_shift_left(self) -> tuple[list[Edit], str]:
        inner, why = self._inner(), self.why_not_forward()
        edits = self._transport().push(self.node, Flow(self.scale, None))

        def leave(rewriter: Rewriter) -> None:
            facts.put(self.node, Partial(why))  # the rest is matched again: the reason stays
            args = (self.x, None, inner.vector.node(rewriter), self.node.args[3])
            rewriter.set_call(self.node, self.node.target, args)

        return [*edits, leave], "partial"

    def shift_on_gain_left(self) -> tuple[list[Edit], str]:
        transport = self._transport()
        transport.bias_only = True
        edits = transport.push(self.node, Flow(None, self.shift))

        def leave(rewriter: Rewriter) -> None:
            rewriter.set_argument(self.node, 2, None)

        return [*edits, leave], "bias"

    def why_gain_stays(self, match: Match) -> Decline | None:
        """Why the gain cannot be folded; None if nothing stops it."""
        try:
            self._transport().push(self.node, Flow(self.scale, None))
        except Blocked as error:
            return _summary({"forward": error}, match)
        return None

    def why_not_forward(self) -> str:
        try:
            self.forward()
        except Blocked as error:
            return error.detail or error.reason.slug
        return ""

    def _inner(self) -> Coefficient:
        """a x + b = a (x + b / a)."""
        assert self.scale is not None and self.shift is not None
        require_divisible(self.scale, self.node)
        return Coefficient(
            self.shift.vector.combine(self.scale.vector, aten.div.Tensor), self.shift.ids
        )

    def _pull(self, transport: Transport, flow: Flow) -> list[Edit]:
        return transport.pull(self.x, flow, self.node)

    def _transport(self) -> Transport:
        options = self.options
        padding = "scale-only" if self._of_norm else options.zero_padding
        return Transport(self.graph, padding, options.copy_shared, options.untie)

    @property
    def _of_norm(self) -> bool:
        """True for the gain and bias of a norm that stays, where they cost nothing."""
        return norm_of(self.x, "shape", "channels") is not None

    def warnings(self, match: Match) -> tuple[Warned, ...]:
        if self.scale is None:
            return ()
        gain = float(self.scale.vector.value.abs().max())
        if gain <= self.options.max_gain:
            return ()
        text = f"a channel is scaled by {gain:.3g}: its running variance is near zero; half precision may overflow"
        return (Warned(match.path, Caution.LARGE_GAIN.code, text),)


def _source(node: fx.Node) -> fx.Node:
    """What an affine, or a scalar, is applied to."""
    scalar = scalar_of(node)
    source = node.args[0] if scalar is None else scalar.data
    assert isinstance(source, fx.Node)
    return source


def _vector(graph: Graph, scalar: Scalar) -> Vector:
    """What a scalar multiplies by, or adds, as a vector of one element."""
    vector = Vector(
        lambda: graph.value(scalar.number).reshape(-1),
        lambda rewriter: rewriter.expression(aten.reshape.default, scalar.number, [-1]),
    )
    return vector.reciprocal() if scalar.how == "over" else vector.times(scalar.factor)


def _summary(blocked: dict[str, Blocked], match: Match) -> Decline:
    """The reason why a site folds neither way: the more informative of the backward and the forward one."""
    errors = [blocked[way] for way in ("forward", "backward") if way in blocked]
    if not errors:
        return Decline(Reason.DIRECTION, match.node)
    dull = (Reason.NETWORK_INPUT, Reason.OUTPUT_EXPOSED, Reason.OUTPUT_REUSED, Reason.NONLINEAR)
    chosen = next((error for error in errors if error.reason not in dull), errors[0])
    others = [
        f"{error.reason.slug} at {error.node.name}" for error in errors if error is not chosen
    ]
    detail = "; ".join(
        filter(None, [chosen.detail, *(f"the other way: {text}" for text in others)])
    )
    return Decline(chosen.reason, chosen.node, detail)
