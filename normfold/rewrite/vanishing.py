"""Where a shift per feature has no effect.

softmax(q (k + b)^T) = softmax(q k^T + (q b^T) 1^T) = softmax(q k^T)      one number for all keys of a query
norm(x + c)          = norm(x)       where all that shares a mean has one c
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from normfold.ir.graph import argument, shape_of
from normfold.ops.reads import operands, product_of, uses
from normfold.ops.table import Kind, is_norm, kind_of, row_of
from normfold.rewrite.absorb import Edit
from normfold.rewrite.crossing import through_dot
from normfold.rewrite.flow import Flow
from normfold.rewrite.transport import Transport


class Vanishing(Transport):
    """A transport of shifts that may end where they have no effect, and pass through the values of attention."""

    def _cross(self, node: fx.Node, edits: list[Edit]) -> Flow | None:
        if node.op != "output" and vanishes(node, self._pushed):
            return None
        if kind_of(node) is Kind.DOT and not self._pushed.keys().isdisjoint(node.args[:3]):
            return through_dot(node, self._pushed)
        return super()._cross(node, edits)


def vanishes(node: fx.Node, pushed: Mapping[fx.Node, Flow]) -> bool:
    """True if what ``node`` makes does not depend on the shifts of its operands."""
    if is_norm(node, "layer-norm", "group-norm", "instance-norm"):
        flow = pushed.get(operands(node)[0])
        return flow is not None and _is_taken_off(node, flow)
    if kind_of(node) is not Kind.DOT:
        return False
    given = [source for source in node.args if isinstance(source, fx.Node)]
    carried = [source for source in given if source in pushed]  # keys that are values stand twice
    if len(carried) != 1 or node.args[1] is not carried[0]:
        return False
    flow = pushed[carried[0]]
    features = -1 if row_of(node).attention else -2
    if flow.scale is not None or flow.shift is None:
        return False
    others = list(flow.shift.ids.shape)
    others[features] = 1
    same_for_all = all(size == 1 for size in others[-2:])
    return same_for_all and (row_of(node).attention or _meets_softmax(node))


def _is_taken_off(node: fx.Node, flow: Flow) -> bool:
    """True if the shift is the same wherever one mean is taken; by where it comes from, not by its numbers."""
    if flow.scale is not None or flow.shift is None:
        return False
    ids, shape = flow.shift.ids, shape_of(operands(node)[0])
    if is_norm(node, "layer-norm"):
        return _is_one(ids, len(argument(node, "normalized_shape")))
    if is_norm(node, "instance-norm"):
        return bool(argument(node, "use_input_stats")) and _is_one(ids, len(shape) - 2)
    groups = int(argument(node, "num_groups"))
    channels = ids.expand(*ids.shape[:1], shape[1], *ids.shape[2:])
    return _is_one(channels.unflatten(1, (groups, -1)), len(shape) - 1)


def _is_one(ids: Tensor, axes: int) -> bool:
    """True if the ids are the same along the last axes."""
    flat = ids.flatten(-axes)
    return torch.equal(flat, flat[..., :1].expand_as(flat))


def _meets_softmax(scores: fx.Node) -> bool:
    """True if every reader of scores is a softmax over the last axis, behind numbers and sums."""
    stack, found = [scores], False
    while stack:
        node = stack.pop()
        for user in {use.user for use in uses(node)}:
            rank = len(shape_of(node))
            if user.op == "output":
                return False
            if row_of(user).sums_to_one:
                if int(argument(user, "dim")) % rank != rank - 1:
                    return False
                found = True
            elif _keeps_rows(user, node):
                stack.append(user)
            else:
                return False
    return found


def _keeps_rows(user: fx.Node, node: fx.Node) -> bool:
    """True for a product with a number and a sum with something else: one number per row stays that."""
    if shape_of(user) != shape_of(node):
        return False
    if kind_of(user) is Kind.ADD:
        return True
    found = product_of(user) if kind_of(user) is Kind.PRODUCT else None
    return found is not None and list(found.factors) == [node] and not found.divisors
