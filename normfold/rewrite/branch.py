"""An affine branch beside a convolution or linear of the same input, summed (RepVGG, MobileOne, FastViT).

conv(x) + a x + b:  the centre tap W[o, o, centre] takes + a[o], the bias takes + b
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from normfold.graph import layout
from normfold.graph.graph import argument, op_name, shape_of
from normfold.graph.ops import Linear, linear_of
from normfold.rewrite.absorb import Edit, into_output, linear_weight
from normfold.rewrite.flow import Blocked, Coefficient, Flow, Vector
from normfold.rewrite.reasons import Reason
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


def merge_branch(affine: fx.Node) -> list[Edit]:
    """Edits that move ``affine`` into a linear op that reads the same tensor and is added to it.

    Raises:
        Blocked: there is no such op in the tree of sums above, or its shape has no centre tap.
    """
    sign, node, root = 1.0, affine, affine
    while (parent := _sum_above(node)) is not None:
        sign *= _sign(parent, node)
        node = root = parent
    x, dim = affine.args[0], int(affine.args[3])  # type: ignore[arg-type]
    for leaf, leaf_sign in _leaves(root):
        linear = linear_of(leaf)
        if linear is None or linear.data is not x or not _has_centre(linear, dim):
            continue
        if len(leaf.users) == 1 or leaf is root:
            return [_merge(affine, linear, sign / leaf_sign, dim), _detach(affine)]
    raise Blocked(Reason.OUTPUT_REUSED, affine, "no parallel branch can take it")


def _sum_above(node: fx.Node) -> fx.Node | None:
    """The sum that is the only reader of ``node``."""
    readers = list(node.users)
    if len(readers) != 1 or op_name(readers[0]) not in ("add", "sub"):
        return None
    parent = readers[0]
    plain = parent.kwargs.get("alpha", 1) == 1
    both = all(isinstance(side, fx.Node) for side in parent.args[:2])
    same = both and all(shape_of(side) == shape_of(parent) for side in parent.args[:2])  # type: ignore[arg-type]
    return parent if plain and same and parent.args[0] is not parent.args[1] else None


def _sign(parent: fx.Node, child: fx.Node) -> float:
    return -1.0 if op_name(parent) == "sub" and parent.args[1] is child else 1.0


def _leaves(root: fx.Node) -> list[tuple[fx.Node, float]]:
    """Summands of a tree of sums whose inner nodes have no other reader, with their signs."""
    found: list[tuple[fx.Node, float]] = []
    stack = [(root, 1.0)]
    while stack:
        node, sign = stack.pop()
        inner = op_name(node) in ("add", "sub") and (node is root or _sum_above(node) is not None)
        if inner and all(isinstance(side, fx.Node) for side in node.args[:2]):
            for side in node.args[:2]:
                stack.append((side, sign * _sign(node, side)))  # type: ignore[arg-type]
        else:
            found.append((node, sign))
    return found


def _has_centre(linear: Linear, dim: int) -> bool:
    """True if the op maps each channel and position onto itself by one tap."""
    node = linear.node
    same = (
        shape_of(node) == shape_of(linear.data) and linear.out_dim == dim and linear.in_dim == dim
    )
    if not same or linear.transposed or linear.in_axis is None or op_name(node) == "embedding":
        return False
    if not linear.kernel:
        return linear.bias_position is not None
    sizes = shape_of(linear.weight)[2:]
    stride, padding, dilation = (
        _list(argument(node, name), linear.kernel) for name in ("stride", "padding", "dilation")
    )
    if any(size % 2 == 0 for size in sizes) or any(step != 1 for step in stride):
        return False
    if padding == ["same"] * linear.kernel:
        return True
    return all(
        pad == (size - 1) * spread // 2
        for pad, size, spread in zip(padding, sizes, dilation, strict=True)
    )


def _list(value: Any, length: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * length if len(values) == 1 else values


def _merge(affine: fx.Node, linear: Linear, sign: float, dim: int) -> Edit:
    graph_rank = len(shape_of(affine))

    def edit(rewriter: Rewriter) -> None:
        scale, shift = affine.args[1], affine.args[2]
        weight = linear_weight(linear)
        tap = rewriter.constant(_centre_tap(linear).to(weight.meta["val"].dtype), "centre_tap")
        rank = len(shape_of(weight))
        if isinstance(scale, fx.Node):
            axis = [1] * rank
            axis[linear.out_axis] = -1
            column = rewriter.expression(aten.reshape.default, scale, axis)
            tap = rewriter.expression(aten.mul.Tensor, tap, column)
        if sign != 1:
            tap = rewriter.expression(aten.mul.Tensor, tap, sign)
        total = rewriter.expression(aten.add.Tensor, weight, tap)
        total = rewriter.cast(total, weight.meta["val"].dtype)
        rewriter.set_argument(linear.node, linear.weight_position, total)
        if isinstance(shift, fx.Node):
            ids = layout.channel(graph_rank, dim, linear.out_features)
            vector = Vector.of(rewriter.graph, shift).times(sign)
            into_output(linear, Flow(None, Coefficient(vector, ids)))(rewriter)
        rewriter.record(f"{linear.node.name}: centre tap")

    return edit


def _centre_tap(linear: Linear) -> torch.Tensor:
    """One-hot weight of the identity: 1 where a channel meets itself in the centre."""
    shape = shape_of(linear.weight)
    tap = torch.zeros(shape)
    centre = tuple((size - 1) // 2 for size in shape[2:])
    features = shape[linear.out_axis]
    width = shape[1] if linear.kernel else features
    for feature in range(features):
        tap[(feature, feature % width, *centre)] = 1.0
    return tap


def _detach(affine: fx.Node) -> Edit:
    """Take the affine out of the sum: its parent becomes the other summand (negated if need be)."""

    def edit(rewriter: Rewriter) -> None:
        parent = next(iter(affine.users))
        left, right = parent.args[:2]
        other = right if left is affine else left
        assert isinstance(other, fx.Node)
        if op_name(parent) == "sub" and left is affine:
            other = rewriter.insert_before(parent, aten.neg.default, other)
        rewriter.replace(parent, other)

    return edit
