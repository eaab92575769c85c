"""Linear ops in a row, and linear ops of one input that are summed, as one linear op.

in a row    W2 (W1 x + b1) + b2        = (W2 W1) x + (W2 b1 + b2)
summed      (W x + b) + s (V x + c)    = (W + s V) x + (b + s c)

A convolution is a matrix for each tap of its kernel. A smaller kernel is a larger one with zeros at the taps that
it lacks (RepVGG, ACNet, MobileOne); of two in a row one is pointwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from normfold.ir.graph import argument, shape_of
from normfold.ops.exact_sums import sizes_of
from normfold.ops.linear import Linear, linear_of, pads_with_zeros
from normfold.ops.reads import product_of
from normfold.report.reasons import Reason
from normfold.rewrite.absorb import as_it_is, linear_weight, set_bias
from normfold.rewrite.branch import detach, leaves, sum_above
from normfold.rewrite.compose import sum_of
from normfold.rewrite.flow import Blocked
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Chain:
    """Linear ops in a row, first to last: each alone reads the one before, times a number.

    Attributes:
        factors: the numbers that the results of the ops are multiplied by.
    """

    ops: tuple[Linear, ...]
    factors: tuple[float, ...]

    @property
    def data(self) -> fx.Node:
        return self.ops[0].data

    @property
    def frame(self) -> Linear:
        """The op whose kernel, stride and padding the whole has: all others are pointwise."""
        return next((op for op in self.ops if not _is_pointwise(op)), self.ops[-1])

    @property
    def products(self) -> int:
        """Weights of all ops: products for each position of the output, if no op strides."""
        return sum(math.prod(shape_of(op.weight)) for op in self.ops)

    @property
    def merged_products(self) -> int:
        first, last = self.ops[0], self.ops[-1]
        inputs = shape_of(first.weight)[first.in_axis or 0]
        return last.out_features * inputs * _taps(self.frame)

    def weight(self, rewriter: Rewriter) -> fx.Node:
        """Of the whole, as an expression: (outputs, inputs / groups, *kernel)."""
        whole = _times(rewriter, _rows(rewriter, self.ops[0]), self.factors[0])
        for op, factor in zip(self.ops[1:], self.factors[1:], strict=True):
            whole = _times(rewriter, _product(rewriter, _rows(rewriter, op), whole), factor)
        return whole

    def edit(self, rewriter: Rewriter) -> None:
        """The first op becomes the whole, in the place of the last."""
        frame, last = self.frame, self.ops[-1]
        weight, bias = self.weight(rewriter), self.bias(rewriter)
        if last.weight_position == 0:
            rewriter.set_call(last.node, aten.matmul.default, (weight, self.data), same=True)
            return
        if not frame.kernel:
            args: tuple[Any, ...] = (self.data, weight, bias)
            rewriter.set_call(last.node, aten.linear.default, args, same=True)
            return
        target = frame.node.target
        assert isinstance(target, torch._ops.OpOverload)
        names = [spec.name for spec in target._schema.arguments[3:]]
        args = (self.data, weight, bias, *(argument(frame.node, name) for name in names))
        rewriter.set_call(last.node, target, args, same=True)

    def bias(self, rewriter: Rewriter) -> fx.Node | None:
        """Of the whole: (outputs,)."""
        whole = None
        for op, factor in zip(self.ops, self.factors, strict=True):
            if whole is not None:
                weight = _rows(rewriter, op)
                if op.kernel:
                    weight = rewriter.expression(aten.sum.dim_IntList, weight, _axes(op))
                whole = rewriter.expression(aten.mv.default, weight, whole)
            whole = sum_of(rewriter, op.bias, whole)
            whole = None if whole is None else _times(rewriter, whole, factor)
        return whole


@dataclass(frozen=True)
class Sum:
    """``base + factor * other`` of one input: the base takes the other, which is ``leaf`` of a tree of sums."""

    base: Linear
    other: Chain
    factor: float
    leaf: fx.Node

    def edit(self, rewriter: Rewriter) -> None:
        linear = as_it_is(self.base.node)
        top, number = _scaled(linear.node)
        weight, own = linear_weight(linear), linear.bias
        if top is not linear.node:
            weight = _times(rewriter, weight, number)
            own = None if own is None else _times(rewriter, own, number)
            rewriter.replace(top, linear.node, same=False)
        more = self.other.weight(rewriter)
        widths = _widths(linear, self.other.frame)
        if any(widths):
            more = rewriter.expression(aten.constant_pad_nd.default, more, widths, 0.0)
        if not linear.kernel and linear.out_axis == 1:
            more = rewriter.expression(aten.t.default, more)
        total = sum_of(rewriter, weight, _times(rewriter, more, self.factor))
        rewriter.set_argument(linear.node, linear.weight_position, total)
        bias = self.other.bias(rewriter)
        if bias is not None:
            bias = _times(rewriter, bias, self.factor)
        set_bias(rewriter, linear, sum_of(rewriter, own, bias))
        (parent,) = self.leaf.users
        detach(self.leaf, parent)(rewriter)


def chains(node: fx.Node, factor: float = 1.0) -> list[Chain]:
    """Every row of linear ops that ends at a node, times a number, from that of it alone to the longest."""
    linear = _plain(node)
    found = [] if linear is None else [Chain((linear,), (factor,))]
    while linear is not None:
        source, number = _unscaled(linear.data)
        before = _plain(source)
        linear = before if before is not None and _follows(linear, before) else None
        if linear is not None:
            longest = found[-1]
            found.append(Chain((linear, *longest.ops), (number, *longest.factors)))
    return found


def sums(root: fx.Node) -> Iterator[Sum | Blocked]:
    """What a tree of sums has of linear ops of one input, and what stands against merging them."""
    found = [(leaf, sign, chains(*_unscaled(leaf))) for leaf, sign, _ in leaves(root)]
    found = sorted((item for item in found if item[2]), key=lambda item: _order(item[2][0]))
    taken = set[fx.Node]()
    for base, sign, own in found:
        for other, other_sign, rows in found:
            same = next((row for row in rows if row.data is own[0].data), None)
            if other is base or same is None or {base, other} & taken:
                continue
            linear = own[0].frame
            blocked = _against(base, linear, other, same)
            yield Sum(linear, same, other_sign / sign, other) if blocked is None else blocked
            if blocked is None:
                taken.add(other)
        taken.add(base)


def _against(base: fx.Node, linear: Linear, leaf: fx.Node, other: Chain) -> Blocked | None:
    for node in (base, leaf):
        if len(node.users) > 1:
            return Blocked(Reason.OUTPUT_REUSED, node)
        if sum_above(node) is None:
            return Blocked(Reason.NOT_PARALLEL, node, "the sum widens it, or reads it twice")
    frame = other.frame
    same = (linear.in_dim, linear.out_dim, linear.kernel, linear.groups) == (
        other.ops[0].in_dim,
        other.ops[-1].out_dim,
        frame.kernel,
        frame.groups,
    )
    if not same or _dtype(linear.weight) != _dtype(frame.weight):
        return Blocked(Reason.NOT_PARALLEL, leaf, "features or groups lie elsewhere")
    try:
        _widths(linear, frame)
    except ValueError as error:
        return Blocked(Reason.NOT_PARALLEL, leaf, str(error))
    return None


def _unscaled(node: fx.Node) -> tuple[fx.Node, float]:
    """What a node is a number times of, if it alone reads that, and the number."""
    number = 1.0
    while (product := product_of(node)) is not None:
        source = product.factors[0] if len(product.factors) == 1 else node
        alone = len(node.users) == len(source.users) == 1
        if product.divisors or source is node or not alone or _dtype(source) != _dtype(node):
            break
        node, number = source, number * product.number
    return node, number


def _scaled(node: fx.Node) -> tuple[fx.Node, float]:
    """The last of the products with numbers that begin at a node and alone read each other, and the number."""
    top, number = node, 1.0
    while len(top.users) == 1:
        (user,) = top.users
        source, factor = _unscaled(user)
        if source is not node:
            break
        top, number = user, factor
    return top, number


def _order(alone: Chain) -> tuple[int, fx.Node]:
    """Largest kernels first: they take the others."""
    return -_taps(alone.frame), alone.frame.node


def _plain(node: fx.Node) -> Linear | None:
    """A linear op over features, of floats, that is no lookup and no transposed convolution."""
    linear = linear_of(node)
    if linear is None or linear.in_dim is None or linear.transposed:
        return None
    return linear if _dtype(node).is_floating_point else None


def _follows(last: Linear, first: Linear) -> bool:
    """True if the two are one linear op: the border of the second reads no zeros that the first did not make."""
    pointwise = _is_pointwise(last) or (
        _is_pointwise(first) and not (pads_with_zeros(last) and first.bias is not None)
    )
    return (
        pointwise
        and (last.groups, first.groups) == (1, 1)
        and (last.kernel, last.in_dim) == (first.kernel, first.out_dim)
        and _dtype(last.weight) == _dtype(first.weight)
        and len(first.node.users) == 1
    )


def _is_pointwise(linear: Linear) -> bool:
    if not linear.kernel:
        return True
    plain = all(step == 1 for step in _steps(linear)) and not pads_with_zeros(linear)
    return _taps(linear) == 1 and plain


def _taps(linear: Linear) -> int:
    return math.prod(shape_of(linear.weight)[2:]) if linear.kernel else 1


def _axes(linear: Linear) -> list[int]:
    return list(range(2, 2 + linear.kernel))


def _dtype(node: fx.Node) -> torch.dtype:
    dtype = node.meta["val"].dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _rows(rewriter: Rewriter, linear: Linear) -> fx.Node:
    """The weight with its outputs first."""
    weight = linear_weight(linear)
    return weight if linear.out_axis == 0 else rewriter.expression(aten.t.default, weight)


def _product(rewriter: Rewriter, last: fx.Node, first: fx.Node) -> fx.Node:
    """(outputs, middle, *kernel) times (middle, inputs, *kernel), one of which has a single tap."""

    def made(target: torch._ops.OpOverload, *args: object) -> fx.Node:
        return rewriter.expression(target, *args)

    outputs, middle, *taps = shape_of(last)
    inputs = shape_of(first)[1]
    if not taps:
        return made(aten.mm.default, last, first)
    if math.prod(taps) == 1:
        whole = made(
            aten.mm.default,
            made(aten.reshape.default, last, [outputs, middle]),
            made(aten.reshape.default, first, [middle, -1]),
        )
        return made(aten.reshape.default, whole, [outputs, *shape_of(first)[1:]])
    rank = len(taps) + 2
    behind = made(aten.permute.default, last, [0, *range(2, rank), 1])
    whole = made(
        aten.mm.default,
        made(aten.reshape.default, behind, [-1, middle]),
        made(aten.reshape.default, first, [middle, inputs]),
    )
    whole = made(aten.reshape.default, whole, [outputs, *taps, inputs])
    return made(aten.permute.default, whole, [0, rank - 1, *range(1, rank - 1)])


def _times(rewriter: Rewriter, value: fx.Node, factor: float) -> fx.Node:
    return value if factor == 1 else rewriter.expression(aten.mul.Tensor, value, factor)


def _widths(base: Linear, other: Linear) -> list[int]:
    """Zeros around the kernel of ``other`` that make its taps those of ``base``, the last axis first.

    Raises:
        ValueError: it reads where the base does not, or its taps are not next to each other in it.
    """
    if not base.kernel:
        return []
    if _steps(base) != _steps(other):
        raise ValueError("the convolutions stride differently")
    widths = list[int]()
    for mine, its in zip(_reads(base), _reads(other), strict=True):
        step = mine.step if len(mine) > 1 else its.step
        before, rest = divmod(its.start - mine.start, step)
        behind = len(mine) - before - len(its)
        aligned = not rest and (len(its) == 1 or its.step == step)
        if not aligned or before < 0 or behind < 0 or mine[0] + mine[-1] != its[0] + its[-1]:
            raise ValueError("the smaller kernel is no block in the middle of the larger one")
        widths = [before, behind, *widths]
    return widths


def _steps(linear: Linear) -> list[int]:
    return sizes_of(argument(linear.node, "stride"), linear.kernel)


def _reads(linear: Linear) -> list[range]:
    """Positions that the taps read of every axis, from that of the output."""
    padding, found = argument(linear.node, "padding"), []
    steps = sizes_of(argument(linear.node, "dilation"), linear.kernel)
    for axis, size in enumerate(shape_of(linear.weight)[2:]):
        spread = steps[axis] * (size - 1)
        if isinstance(padding, str):
            before = spread // 2 if padding == "same" else 0
        else:
            before = sizes_of(padding, linear.kernel)[axis]
        found.append(range(-before, spread - before + 1, steps[axis]))
    return found
