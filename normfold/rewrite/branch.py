"""An affine branch beside something else that is linear in the same input, summed.

conv(x) + a x + b:  the centre tap W[o, o, centre] takes + a[o], the bias takes + b (RepVGG, MobileOne)
(a x + b) + (a' x + b') = (a + a') x + (b + b'), a' x with one number a', or x itself (RepBN: BN(x) + eta x)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from normfold.ir import facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, shape_of
from normfold.ir.provenance import copy_provenance
from normfold.ir.sites import AffineOf, affine_sites
from normfold.ops import layout
from normfold.ops.linear import Linear, linear_of
from normfold.ops.reads import product_of, summands
from normfold.ops.table import Kind, row_of
from normfold.report.reasons import Reason
from normfold.rewrite.absorb import Edit, into_output, linear_weight
from normfold.rewrite.flow import Blocked, Coefficient, Flow, Vector
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


def merge_branch(affine: fx.Node) -> list[Edit]:
    """Edits that move ``affine`` into a linear op that reads the same tensor and is added to it.

    Raises:
        Blocked: there is no such op in the tree of sums above, or its shape has no centre tap.
    """
    sign, node, root = 1.0, affine, affine
    while (parent := sum_above(node)) is not None:
        sign *= _sign(parent, node)
        node = root = parent
    x, dim = affine.args[0], int(affine.args[3])  # type: ignore[arg-type]
    beside = next(iter(affine.users))
    own = _Term(affine, beside, sign, affine.args[1], affine.args[2])
    for leaf, leaf_sign, parent in leaves(root):
        multiple = None if leaf is affine else _multiple(leaf, affine)
        if multiple is not None:
            other = _Term(leaf, parent, leaf_sign, *multiple)
            first = row_of(beside).inverts and beside.args[0] is affine
            kept, gone = (own, other) if first else (other, own)  # 0 - y would cost an op
            return [_add(affine, kept, gone), detach(gone.node, gone.parent)]
    for leaf, leaf_sign, _ in leaves(root):
        linear = linear_of(leaf)
        if linear is None or linear.data is not x or not _has_centre(linear, dim):
            continue
        if len(leaf.users) == 1 or leaf is root:
            return [_merge(affine, linear, sign / leaf_sign, dim), detach(affine, beside)]
    raise Blocked(Reason.OUTPUT_REUSED, affine, "no parallel branch can take it")


def sum_above(node: fx.Node) -> fx.Node | None:
    """The sum that is the only reader of ``node``."""
    readers = list(node.users)
    if len(readers) != 1 or row_of(readers[0]).kind is not Kind.ADD:
        return None
    parent = readers[0]
    sides = summands(parent)
    plain = len(sides) == 2 and sides[0][0] is not sides[1][0] and all(k for _, k in sides)
    same = all(shape_of(side) == shape_of(parent) for side, _ in sides)
    return parent if plain and same else None


def _sign(parent: fx.Node, child: fx.Node) -> float:
    return next(factor for side, factor in summands(parent) if side is child)


def leaves(root: fx.Node) -> list[tuple[fx.Node, float, fx.Node]]:
    """Summands of a tree of sums whose inner nodes have no other reader, their factors and sums; x + x is one."""
    found: list[tuple[fx.Node, float, fx.Node]] = []
    stack = [(root, 1.0, root)]
    while stack:
        node, sign, parent = stack.pop()
        inner = row_of(node).kind is Kind.ADD and (node is root or sum_above(node) is not None)
        sides = summands(node) if inner else []
        if len({side for side, _ in sides}) == 2:
            stack += [(side, sign * factor, node) for side, factor in sides]
        else:
            found.append((node, sign, parent))
    return found


def _multiple(leaf: fx.Node, affine: fx.Node) -> tuple[Any, Any] | None:
    """Scale and shift of ``leaf`` as an affine of what ``affine`` reads, along the same axis, or None."""
    x, dim = affine.args[0], affine.args[3]
    if leaf is x:
        return None, None
    if row_of(leaf).kind is Kind.AFFINE:
        own = leaf.args[0] is x and leaf.args[3] == dim
        return (leaf.args[1], leaf.args[2]) if own else None
    found = product_of(leaf)
    if found is None or found.divisors or found.factors.count(x) != 1:  # type: ignore[arg-type]
        return None
    others = [factor for factor in found.factors if factor is not x]
    if leaf.meta["val"].dtype != x.meta["val"].dtype or shape_of(leaf) != shape_of(affine):  # type: ignore[union-attr]
        return None
    if not others:
        return found.number, None
    single = is_static(others[0]) and others[0].meta["val"].numel() == 1
    return (others[0], None) if single else None


@dataclass(frozen=True)
class _Term:
    """``sign * (scale x + shift)`` in a tree of sums; ``scale`` is a vector, a number or None (1)."""

    node: fx.Node
    parent: fx.Node
    sign: float
    scale: Any
    shift: Any


def _add(affine: fx.Node, kept: _Term, gone: _Term) -> Edit:
    """One affine takes the place of ``kept`` that is worth ``gone`` too."""
    x, dim = affine.args[0], int(affine.args[3])  # type: ignore[arg-type]

    def vector(rewriter: Rewriter, scale: Any, factor: float = 1.0) -> fx.Node:
        if not isinstance(scale, fx.Node):
            number = factor if scale is None else scale * factor
            dtype = affine.meta["val"].dtype
            return rewriter.expression(
                aten.full.default, [shape_of(affine)[dim]], number, dtype=dtype
            )
        scale = rewriter.expression(aten.reshape.default, scale, [-1])
        return scale if factor == 1 else rewriter.expression(aten.mul.Tensor, scale, factor)

    def edit(rewriter: Rewriter) -> None:
        ratio = gone.sign / kept.sign
        scale = rewriter.expression(
            aten.add.Tensor, vector(rewriter, kept.scale), vector(rewriter, gone.scale, ratio)
        )
        shifts = [kept.shift] if kept.shift is not None else []
        if gone.shift is not None:
            shifts.append(vector(rewriter, gone.shift, ratio))
        shift = rewriter.expression(aten.add.Tensor, *shifts) if len(shifts) == 2 else None
        shift = shift if shift is not None or not shifts else shifts[0]
        both = rewriter.insert_before(kept.parent, channel_affine, x, scale, shift, dim)
        copy_provenance(affine, both)
        sites = [site for node in (affine, kept.node, gone.node) for site in affine_sites(node)]
        facts.put(both, AffineOf(tuple(dict.fromkeys(sites))))
        rewriter.replace_input(kept.parent, kept.node, both)
        if not kept.node.users:
            rewriter.erase(kept.node)
        rewriter.record(f"{both.name}: two parallel affines")

    return edit


def _has_centre(linear: Linear, dim: int) -> bool:
    """True if the op maps each channel and position onto itself by one tap."""
    node = linear.node
    same = (
        shape_of(node) == shape_of(linear.data) and linear.out_dim == dim and linear.in_dim == dim
    )
    if not same or linear.transposed or linear.in_axis is None:
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


def detach(summand: fx.Node, parent: fx.Node) -> Edit:
    """Take a summand out of a tree of sums, of which another leaf is worth it too from now on."""

    def edit(rewriter: Rewriter) -> None:
        root = parent
        while (above := sum_above(root)) is not None:
            root = above
        rewriter.changed(*_sums_below(root))
        ((other, factor),) = ((side, k) for side, k in summands(parent) if side is not summand)
        if factor == -1:
            other = rewriter.insert_before(parent, aten.neg.default, other)
        elif factor != 1:
            other = rewriter.insert_before(parent, aten.mul.Tensor, other, factor)
        rewriter.replace(parent, other)

    return edit


def _sums_below(root: fx.Node) -> Iterator[fx.Node]:
    for side, _ in summands(root):
        if row_of(side).kind is Kind.ADD and sum_above(side) is not None:
            yield side
            yield from _sums_below(side)
