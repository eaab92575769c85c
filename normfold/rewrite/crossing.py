"""How a per-feature affine crosses single ops: products, pads, attention; and what stops it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from normfold.ir.expressions import made_of
from normfold.ir.graph import op_name, shape_of
from normfold.ops import layout
from normfold.ops.attention import rows_sum_to_one
from normfold.ops.linear import zero_pad_of
from normfold.ops.reads import operands, producer, product_of
from normfold.ops.table import Kind, row_of
from normfold.report.reasons import Reason
from normfold.rewrite.flow import Blocked, Flow


def blocked_by(node: fx.Node) -> Blocked:
    """Why an op that the table does not let through stops an affine."""
    if node.op == "placeholder":
        return Blocked(Reason.NETWORK_INPUT, node)
    row = row_of(producer(node))
    if row.norm is not None:
        return Blocked(Reason.NONLINEAR, node, "another norm")
    if row.nonlinear or row.kind is not Kind.STOP:
        return Blocked(Reason.NONLINEAR, node)
    return Blocked(Reason.UNKNOWN_OP, node, f"`{op_name(producer(node))}`")


def for_operand(flow: Flow, operand: fx.Node) -> Flow:
    return flow.map(lambda ids: layout.for_operand(ids, operand))


def is_unaffected(user: fx.Node, value: fx.Node, flow: Flow) -> bool:
    """True if a MOVE op takes only elements that the flow leaves alone."""
    try:
        parts = [part.ids for part in (flow.scale, flow.shift) if part is not None]
        return all(bool((layout.push(user, value, ids) < 0).all()) for ids in parts)
    except layout.LayoutError:  # run-time data say which elements
        return False


def factors(node: fx.Node) -> tuple[list[fx.Node], float | None]:
    """The factors that a scale may enter, and the number they are multiplied by (None: a tensor)."""
    found = product_of(node)
    if found is None or not found.factors:
        raise Blocked(Reason.NONLINEAR, node)
    alone = len(found.factors) == 1 and not found.divisors
    return found.factors, found.number if alone else None


def inputs_of(*nodes: fx.Node) -> set[fx.Node]:
    """The inputs of the network that some values depend on."""
    return {found for found in made_of(*nodes) if found.op == "placeholder"}


def through_product(node: fx.Node, pushed: dict[fx.Node, Flow]) -> Flow:
    sides, constant = factors(node)
    carried = [side for side in node.args[:2] if isinstance(side, fx.Node) and side in pushed]
    if len(carried) != 1 or carried[0] not in sides:
        raise Blocked(Reason.NONLINEAR, node, "both factors, or the denominator, carry the affine")
    flow = pushed[carried[0]]
    if flow.shift is not None and constant is None:
        others = inputs_of(*(side for side in sides if side is not carried[0]))
        conditioned = others and others.isdisjoint(inputs_of(carried[0]))
        raise Blocked(Reason.CONDITIONED if conditioned else Reason.GATED, node)
    shift = flow.shift.times(constant) if flow.shift and constant else None
    return Flow(flow.scale, shift).map(lambda ids: layout.align(ids, len(shape_of(node))))


def through_pad(node: fx.Node, flow: Flow) -> Flow:
    """Zeros stay zeros under a scale; a shift leaves the padded border out."""
    source = operands(node)[0]
    pad = zero_pad_of(node)
    assert pad is not None
    padded = {len(shape_of(node)) - 1 - index // 2 for index, width in enumerate(pad) if width}

    def scale_ids(ids: Tensor) -> Tensor:
        if all(ids.shape[dim] == 1 for dim in padded):
            return ids
        return layout.push(node, source, ids)

    scale = flow.scale.at(scale_ids(flow.scale.ids)) if flow.scale else None
    shift = flow.shift.at(layout.push(node, source, flow.shift.ids)) if flow.shift else None
    return Flow(scale, shift)


def value_operand(node: fx.Node, flow: Flow) -> tuple[fx.Node, fx.Node]:
    """(weights, features) of a product of activations, by where the features lie."""
    left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    if row_of(node).attention:
        features = node.args[2]
        assert isinstance(features, fx.Node)
        if any(part is not None and part.ids.shape[-2] > 1 for part in (flow.scale, flow.shift)):
            raise Blocked(Reason.AXIS_MISMATCH, node)
        return left, features
    parts = [part for part in (flow.scale, flow.shift) if part is not None]
    if all(part.ids.shape[-2] == 1 for part in parts):
        return left, right
    if all(part.ids.shape[-1] == 1 for part in parts):
        return right, left
    raise Blocked(Reason.AXIS_MISMATCH, node)


def through_dot(node: fx.Node, pushed: dict[fx.Node, Flow]) -> Flow:
    """What a product of activations carries: the transform of its value operand."""
    flow = None
    for name, source in zip(("left", "right", "value"), node.args[:3], strict=False):
        if isinstance(source, fx.Node) and source in pushed:
            if flow is not None:
                raise Blocked(Reason.NONLINEAR, node, "both factors carry the affine")
            flow, place, carrier = pushed[source], name, source
    assert flow is not None
    attention = row_of(node).attention
    if (attention and place != "value") or (not attention and place != "right"):
        raise Blocked(Reason.NONLINEAR, node, "the affine meets the other factor of a product")
    mixed = len(shape_of(carrier)) - 2
    for part in (flow.scale, flow.shift):
        if part is not None and part.ids.shape[mixed] > 1:
            raise Blocked(Reason.AXIS_MISMATCH, node)
    weights = node.args[0]
    assert isinstance(weights, fx.Node)
    if flow.shift is not None and not rows_sum_to_one(node, weights):
        raise Blocked(Reason.ATTENTION_ROWS, node)
    return flow.map(lambda ids: layout.align(ids, len(shape_of(node))))


def join(node: fx.Node, sources: list[fx.Node], flow: Flow) -> Flow:
    """What a cat or stack carries when ``sources``, some or all of its operands, carry the same transform."""

    def joined(ids: Tensor) -> Tensor:
        parts = [layout.push(node, source, ids) for source in sources]
        shape = torch.broadcast_shapes(*(part.shape for part in parts))
        return layout.compress(torch.stack([part.expand(shape) for part in parts]).amax(0))

    return flow.map(joined)
