"""Move a per-feature affine through a graph until linear ops absorb it, or say what stops it.

`Transport.pull` moves ``y * scale + shift`` against the data flow into whatever produces ``y``;
`Transport.push` moves it with the data flow into every reader. Both only read the graph: they return edits,
or raise `Blocked`. An edit list is complete: after it the affine is gone on that side.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor, fx

from normfold.ir.custom_ops import channel_pad
from normfold.ir.expressions import is_static, sharers
from normfold.ir.graph import Graph, shape_of
from normfold.ops import layout
from normfold.ops.attention import rows_sum_to_one
from normfold.ops.layout import LayoutError
from normfold.ops.linear import Linear, linear_of, zero_pad_of
from normfold.ops.mixing import keeps_constants, mixed, through_mix
from normfold.ops.reads import operands, producer, reads_shape_only, summands, uses
from normfold.ops.table import Kind, kind_of, norm_of, row_of
from normfold.report.reasons import Reason
from normfold.rewrite.absorb import Edit, into_input, into_output, restated
from normfold.rewrite.compose import into_affine, into_border, into_constant, pad_with_shift
from normfold.rewrite.crossing import (
    blocked_by,
    factors,
    for_operand,
    is_unaffected,
    join,
    through_dot,
    through_pad,
    through_product,
    value_operand,
)
from normfold.rewrite.flow import Blocked, Coefficient, Flow, require_positive

aten = torch.ops.aten


@dataclass
class Transport:
    """One attempt to move one affine.

    ``padding``, ``copy_shared`` and ``untie`` are fold-affine's options. ``bias_only``: what moves is the bias of
    a norm that stays; it may end in the bias of a norm on the other side of a sum, and makes no larger addition.
    """

    graph: Graph
    padding: str = "cheapest"
    copy_shared: bool = True
    untie: bool = False
    bias_only: bool = False
    absorbed: list[tuple[Linear, Flow]] = field(default_factory=list)  # by `push`
    _pulled: set[fx.Node] = field(default_factory=set)
    _inverses: list[Edit] = field(default_factory=list)
    _pushed: dict[fx.Node, Flow] = field(default_factory=dict)

    # -- against the data flow ----------------------------------------------------------------------

    def pull(self, value: fx.Node, flow: Flow, user: fx.Node) -> list[Edit]:
        """Edits after which ``value`` holds ``flow(value)`` as seen by ``user``.

        Raises:
            Blocked: some op on the way cannot carry or absorb it, or another reader would see the change.
        """
        if flow.trivial:
            return []
        if is_static(value):
            return [into_constant(value, flow, user)]
        if value in self._pushed:
            raise Blocked(
                Reason.OUTPUT_REUSED, value, "the two sides of one sum depend on each other"
            )
        self._require_unseen(value, flow, user)
        self._pulled.add(value)
        try:
            flow = for_operand(flow, value)
            return [*self._pull_through(value, flow), *restated(value, flow)]
        except LayoutError as error:
            raise Blocked(Reason.AXIS_MISMATCH, value, str(error)) from error

    def _pull_through(self, value: fx.Node, flow: Flow) -> list[Edit]:
        kind = kind_of(value)
        if value.target is channel_pad:
            (source,) = value.args[:1]
            return [into_border(value, flow), *self.pull(source, flow, value)]  # type: ignore[arg-type]
        match kind:
            case Kind.LINEAR:
                linear = linear_of(value)
                assert linear is not None
                if flow.scale is not None or linear.bias_position is None:
                    self._require_own_weight(linear.weight, value)
                return [into_output(linear, flow)]
            case Kind.AFFINE:
                return [into_affine(value, flow, behind=True)]
            case Kind.MOVE:
                return self._pull_move(value, flow)
            case Kind.ADD:
                return self._pull_sum(value, flow)
            case Kind.PRODUCT:
                return self._pull_product(value, flow)
            case Kind.MONOTONE | Kind.HOMOGENEOUS:
                if kind is Kind.HOMOGENEOUS and flow.shift is not None:
                    raise Blocked(Reason.NONLINEAR, value)
                require_positive(flow.scale, value)
                source = operands(value)[0]
                return self.pull(
                    source, flow.map(lambda ids: through_mix(value, ids)), producer(value)
                )
            case Kind.MIX:
                if flow.shift is not None and not keeps_constants(value):
                    raise Blocked(Reason.ZERO_PADDING, value, "its weights do not sum to one")
                source = operands(value)[0]
                return self.pull(source, flow.map(lambda ids: through_mix(value, ids)), value)
            case Kind.DOT:
                return self._pull_dot(value, flow)
            case _:
                raise blocked_by(value)

    def _require_unseen(self, value: fx.Node, flow: Flow, user: fx.Node) -> None:
        """Every other reader must be blind to the change."""
        mine = 0
        for use in uses(value):
            if use.user is user or producer(use.user) is user:
                mine += 1
            if (use.user is user and mine == 1) or reads_shape_only(use.user, use.position):
                continue
            if use.user.op == "output":
                raise Blocked(Reason.OUTPUT_EXPOSED, value)
            if (
                use.user is not user
                and kind_of(use.user) is Kind.MOVE
                and is_unaffected(use.user, value, flow)
            ):
                continue
            raise Blocked(Reason.OUTPUT_REUSED, value, f"also read by `{use.user.name}`")

    def _require_own_weight(self, weight: fx.Node, node: fx.Node) -> None:
        """A shared weight is copied for the op that changes; not so an embedding table, or when forbidden."""
        others = sharers(weight) - {node}
        tied = any(row_of(other).lookup for other in (*others, node))
        if others and not (self.untie if tied else self.copy_shared):
            raise Blocked(Reason.PARAMETER_SHARED, node, f"also read by `{min(others).name}`")

    def _pull_move(self, value: fx.Node, flow: Flow) -> list[Edit]:
        pad = zero_pad_of(value)
        edits: list[Edit] = []
        if pad is not None and flow.shift is not None:
            edits.append(pad_with_shift(value, pad, flow.shift))
        scales = [] if flow.scale is None else layout.pull(value, flow.scale.ids)
        shifts = [] if flow.shift is None else layout.pull(value, flow.shift.ids)
        for index, operand in enumerate(operands(value)):
            part = Flow(
                flow.scale.at(scales[index][1]) if flow.scale else None,
                flow.shift.at(shifts[index][1]) if flow.shift else None,
            )
            edits += self.pull(operand, part, value)
        return edits

    def _pull_sum(self, value: fx.Node, flow: Flow) -> list[Edit]:
        """s(x + y) + t = (s x + t) + s y: the scale into both sides, the shift into either."""
        sides = summands(value)
        if len(sides) < 2 and flow.scale is not None:
            raise Blocked(Reason.UNKNOWN_OP, value, "a number is added")
        blocked: Blocked | None = None
        for chosen in range(len(sides)) if flow.shift is not None else (-1,):
            before = set(self._pulled)
            try:
                edits: list[Edit] = []
                for index, (side, k) in enumerate(sides):
                    shift = flow.shift.times(1 / k) if flow.shift and index == chosen else None
                    edits += self.pull(side, for_operand(Flow(flow.scale, shift), side), value)
                return edits
            except (Blocked, LayoutError) as error:
                blocked, self._pulled = blocked or _as_blocked(error, value), before
        assert blocked is not None
        raise blocked

    def _pull_product(self, value: fx.Node, flow: Flow) -> list[Edit]:
        sides, constant = factors(value)
        if flow.shift is not None and not constant:
            by_parameter = any(is_static(factor) for factor in value.all_input_nodes)
            raise Blocked(Reason.NO_BIAS if by_parameter else Reason.GATED, value)
        shift = flow.shift.times(1 / constant) if flow.shift and constant else None
        blocked: Blocked | None = None
        for factor in sorted(sides, key=is_static):
            before = set(self._pulled)
            try:
                return self.pull(factor, for_operand(Flow(flow.scale, shift), factor), value)
            except (Blocked, LayoutError) as error:
                blocked, self._pulled = blocked or _as_blocked(error, value), before
        assert blocked is not None
        raise blocked

    def _pull_dot(self, value: fx.Node, flow: Flow) -> list[Edit]:
        weights, features = value_operand(value, flow)
        if flow.shift is not None and not rows_sum_to_one(value, weights):
            raise Blocked(Reason.ATTENTION_ROWS, value)
        return self.pull(features, for_operand(flow, features), value)

    # -- with the data flow -------------------------------------------------------------------------

    def push(self, site: fx.Node, flow: Flow) -> list[Edit]:
        """Edits after which every reader of ``site`` may read ``x`` although it was made for ``flow(x)``.

        Raises:
            Blocked: some reader can neither absorb the transform nor pass it on.
        """
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        self._pushed = {site: flow}
        edits: list[Edit] = []
        queue: list[tuple[int, fx.Node]] = []
        queued: set[fx.Node] = set()

        def enqueue(value: fx.Node) -> None:
            readers = {
                use.user for use in uses(value) if not reads_shape_only(use.user, use.position)
            }
            for reader in readers - queued:
                queued.add(reader)
                heapq.heappush(queue, (order[reader], reader))

        enqueue(site)
        while queue:
            _, node = heapq.heappop(queue)
            try:
                out = self._cross(node, edits)
                out = out and for_operand(out, node)  # a layout that does not fit is refused
            except LayoutError as error:
                raise Blocked(Reason.AXIS_MISMATCH, node, str(error)) from error
            if out is not None and not out.trivial:
                self._pushed[node] = out
                enqueue(node)
        if crossed := self._pulled & self._pushed.keys():
            raise Blocked(Reason.OUTPUT_REUSED, min(crossed, key=lambda node: order[node]))
        changed = (restated(node, flow, back=True) for node, flow in self._pushed.items())
        # an op may take an inverse on its output and a bias map on its input: the map comes behind both
        return [*self._inverses, *edits, *chain.from_iterable(changed)]

    def _cross(self, node: fx.Node, edits: list[Edit]) -> Flow | None:
        """What ``node``'s result carries when its operands carry `_pushed`; None where it absorbs all."""
        if node.op == "output":
            raise Blocked(Reason.OUTPUT_EXPOSED, node)
        kind = kind_of(node)
        if kind is Kind.LINEAR:
            linear = linear_of(node)
            assert linear is not None
            if self._pushed[linear.data].scale is not None or linear.bias_position is None:
                self._require_own_weight(linear.weight, node)
            narrow = linear.out_features <= shape_of(linear.data)[linear.in_dim or 0]
            if self.bias_only and linear.bias is None and not narrow:
                raise Blocked(Reason.NO_BIAS, node, "an addition in front is the smaller one")
            self.absorbed.append((linear, self._pushed[linear.data]))
            edits.append(into_input(linear, self._pushed[linear.data], self.padding))
            return None
        if node.target is channel_pad:  # pad_v(f(x)) = f(pad_w(x)), v = f(w)
            flow = self._pushed[node.args[0]]  # type: ignore[index]
            edits.append(into_border(node, flow.inverse(node)))
            return flow
        if kind is Kind.STOP:
            raise blocked_by(node)
        sources = operands(node)
        flows = [self._pushed.get(source) for source in sources]
        first = next((flow for flow in flows if flow is not None), None)
        if first is None:
            raise Blocked(Reason.NONLINEAR, node, "the tensor is used as a weight or an index")
        match kind:
            case Kind.AFFINE:
                edits.append(into_affine(node, first, behind=False))
                return None
            case Kind.MOVE:
                return self._push_move(node, sources, flows)
            case Kind.ADD:
                return self._push_sum(node)
            case Kind.PRODUCT:
                return through_product(node, self._pushed)
            case Kind.MONOTONE | Kind.HOMOGENEOUS:
                if kind is Kind.HOMOGENEOUS and first.shift is not None:
                    raise Blocked(Reason.NONLINEAR, node)
                require_positive(first.scale, node)
                return first.map(lambda ids: mixed(node, ids))
            case Kind.MIX:
                if first.shift is not None and not keeps_constants(node):
                    raise Blocked(Reason.ZERO_PADDING, node, "its weights do not sum to one")
                return first.map(lambda ids: mixed(node, ids))
            case _:
                return through_dot(node, self._pushed)

    def _push_move(self, node: fx.Node, sources: list[fx.Node], flows: list[Flow | None]) -> Flow:
        if len(sources) == 1:
            assert flows[0] is not None
            return (
                flows[0].map(lambda ids: layout.push(node, sources[0], ids))
                if zero_pad_of(node) is None
                else through_pad(node, flows[0])
            )
        carried = [(source, flow) for source, flow in zip(sources, flows, strict=True) if flow]
        if len({id(flow) for _, flow in carried}) > 1 and not all(
            flow.same(carried[0][1]) for _, flow in carried
        ):
            raise Blocked(Reason.AXIS_MISMATCH, node, "its operands carry different affines")
        source, flow = carried[0]
        parts = [part.ids for part in (flow.scale, flow.shift) if part is not None]
        along_features = any(layout.beside(node, ids) is None for ids in parts)
        if along_features or any(
            id(other) != id(source) and other in self._pushed for other in sources
        ):
            holders = list(dict(carried))
            if len(holders) > 1 and not along_features and set(holders) != set(sources):
                raise Blocked(Reason.OUTPUT_REUSED, node, "one affine reaches several operands")
            return join(node, holders, flow)
        if sources.count(source) > 1:
            raise Blocked(Reason.OUTPUT_REUSED, node)
        for other in sources:  # joined along tokens: the other parts take the inverse
            if other is not source:
                self._inverses += self.pull(other, flow.inverse(node), node)
        return flow.map(lambda ids: _joined(node, ids))

    def _push_sum(self, node: fx.Node) -> Flow:
        """(s x + t) + y = s (x + y / s) + t: a shift passes alone, a scale when y takes the inverse."""
        rank, sides = len(shape_of(node)), summands(node)
        carried = [(side, k, self._pushed[side]) for side, k in sides if side in self._pushed]
        for side, _, flow in carried:
            for part in (flow.scale, flow.shift):
                if part is not None and shape_of(side) != shape_of(node):
                    layout.for_operand(layout.align(part.ids, rank), side)
        scales = [flow.scale for _, _, flow in carried]
        scale = scales[0]
        if len(carried) == 2 and not (
            all(part is None for part in scales) or (scale is not None and scale.same(scales[1]))
        ):
            raise Blocked(Reason.AXIS_MISMATCH, node, "its operands carry different scales")
        if len(carried) == 1 and scale is not None:
            others = [side for side, _ in sides if side is not carried[0][0]]
            if not others:
                raise Blocked(Reason.UNKNOWN_OP, node, "a number is added")
            for other in others:
                inner = for_operand(Flow(scale).map(lambda ids: layout.align(ids, rank)), other)
                self._inverses += self.pull(other, inner.inverse(node), node)
        shifts = [flow.shift.times(k) for _, k, flow in carried if flow.shift is not None]
        alone = len(sides) == 2 and len(carried) == 1
        if self.bias_only and alone and self._met_by_norm(node, sides, shifts[0]):
            return Flow()
        shift = shifts[0] if shifts else None
        if len(shifts) == 2:
            if not torch.equal(shifts[0].ids, shifts[1].ids):
                raise Blocked(Reason.AXIS_MISMATCH, node)
            if len(carried) == 2 and carried[0][2].same(carried[1][2]) and carried[1][1] == -1:
                shift = None  # x - pool(x): the two shifts cancel
            else:
                shift = replace(
                    shifts[0], vector=shifts[0].vector.combine(shifts[1].vector, aten.add.Tensor)
                )
        return Flow(scale, shift).map(lambda ids: layout.align(ids, rank))

    def _met_by_norm(
        self, node: fx.Node, sides: list[tuple[fx.Node, float]], shift: Coefficient
    ) -> bool:
        """True if the bias of a norm on the other side of a sum can take the shift: it ends here.

        A norm without one cannot: two norms would hand it to each other for ever.
        """
        other, k = next((side, k) for side, k in sides if side not in self._pushed)
        value = other
        while kind_of(value) is Kind.MOVE and len(operands(value)) == 1:
            value = operands(value)[0]
        biased = kind_of(value) is Kind.AFFINE and value.args[2] is not None
        if not biased or not norm_of(operands(value)[0], "shape", "channels"):
            return False
        before = set(self._pulled)
        try:
            ids = layout.for_operand(layout.align(shift.ids, len(shape_of(node))), other)
            flow = Flow(None, replace(shift.times(1 / k), ids=ids))
            self._inverses += self.pull(other, flow, node)
        except (Blocked, LayoutError):
            self._pulled = before
            return False
        return True


def _joined(node: fx.Node, ids: Tensor) -> Tensor:
    """Layout of what a cat or stack makes of operands with equal layouts, along an axis without features."""
    found = layout.beside(node, ids)
    assert found is not None
    return found


def _as_blocked(error: Blocked | LayoutError, node: fx.Node) -> Blocked:
    return error if isinstance(error, Blocked) else Blocked(Reason.AXIS_MISMATCH, node, str(error))
