"""What tensors are along features that are constant, as parameter expressions: a bias, and what ops make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.expressions import evaluate, is_static
from normfold.ir.graph import Graph, shape_of
from normfold.ops.linear import Linear, linear_of, pads_with_zeros
from normfold.ops.mixing import keeps_constants
from normfold.ops.reads import operands, producer
from normfold.ops.table import Kind, kind_of, row_of
from normfold.rewrite.flow import Vector
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Constant:
    """Of each place along an axis of a tensor, the number that stands there at every position.

    Attributes:
        known: where there is one; ``vector`` is anything elsewhere.
        zero: where it is zero whatever the other parameters are, and not by the values that they happen to have.
        signed: where its sign is that of one parameter.
    """

    vector: Vector
    known: Tensor
    zero: Tensor
    signed: Tensor

    @property
    def value(self) -> Tensor:
        return self.vector.value

    @classmethod
    def of_writer(cls, graph: Graph, linear: Linear, zero: Tensor) -> Constant:
        """Of a linear op whose weights are all ``zero`` for some outputs: its bias."""
        vector = _bias(graph, linear)
        signed = _none(len(zero)) if linear.bias is None else _signed(graph, linear.bias)
        return cls(vector, zero, zero & (vector.value == 0), zero & signed)

    @classmethod
    def nothing(cls, size: int, dtype: torch.dtype) -> Constant:
        """Of a tensor of which nothing is known."""
        return cls(_zeros(size, dtype), _none(size), _none(size), _none(size))

    def at(self, rewriter: Rewriter, places: Tensor) -> fx.Node:
        """Expression of the numbers at some places."""
        index = rewriter.constant(places, "constants")
        return rewriter.expression(aten.index_select.default, self.vector.node(rewriter), 0, index)


def constant_behind(
    graph: Graph,
    node: fx.Node,
    axes: Mapping[fx.Node, int],
    ids: Mapping[fx.Node, Tensor],
    found: Mapping[fx.Node, Constant],
) -> Constant:
    """Of what an op makes of tensors of which it is known.

    Args:
        axes, ids: of each tensor that holds the features, as of `normfold.rewrite.pruning.Features`.
        found: of those that the op reads.
    """
    kind = kind_of(node)
    if kind is Kind.LINEAR:
        linear = linear_of(node)
        assert linear is not None
        return _of_each_alone(graph, linear, found[linear.data])
    if kind is Kind.MOVE and row_of(producer(node)).move.joins and _joins_features(node, axes):
        return _joined(node, axes, found)
    if kind is Kind.MOVE:
        return _moved(
            [(ids[part], found[part]) for part in operands(node) if part in found], ids[node]
        )
    if kind is Kind.MIX:
        source = found[operands(node)[0]]
        return source if keeps_constants(node) else replace(source, known=source.zero)
    if kind is Kind.MONOTONE:
        return found[operands(node)[0]]
    return _elementwise(graph, node, axes, found)


def _bias(graph: Graph, linear: Linear) -> Vector:
    if linear.bias is not None:
        return Vector.of(graph, linear.bias)
    return _zeros(linear.out_features, linear.weight.meta["val"].dtype)


def _of_each_alone(graph: Graph, linear: Linear, source: Constant) -> Constant:
    """Of a convolution of each channel by itself: sum(W) v + b, away from borders that are padded with zeros."""
    weight = evaluate(graph.module, linear.weight).double().flatten(1)
    axes, bias = list(range(1, len(shape_of(linear.weight)))), _bias(graph, linear)

    def build(rewriter: Rewriter) -> fx.Node:
        total = rewriter.expression(aten.sum.dim_IntList, linear.weight, axes)
        scaled = rewriter.expression(aten.mul.Tensor, total, source.vector.node(rewriter))
        return rewriter.expression(aten.add.Tensor, scaled, bias.node(rewriter))

    vector = Vector(lambda: weight.sum(1) * source.value + bias.value, build)
    everywhere = not pads_with_zeros(linear) and not linear.transposed
    inside = source.known if everywhere else source.zero
    silent = (weight == 0).all(1)
    of_bias = Constant.of_writer(graph, linear, silent)
    zero = of_bias.zero | (source.zero & (bias.value == 0))
    return Constant(vector, silent | inside, zero, of_bias.signed)


def _joins_features(node: fx.Node, axes: Mapping[fx.Node, int]) -> bool:
    """True for a concatenation along the axis of the features."""
    parts: Any = node.args[0]
    axis = axes[node]
    return sum(shape_of(part)[axis] for part in parts) == shape_of(node)[axis]


def _joined(
    node: fx.Node, axes: Mapping[fx.Node, int], found: Mapping[fx.Node, Constant]
) -> Constant:
    """Of features side by side; nothing is known of tensors that hold others."""
    parts: Any = node.args[0]
    sizes, dtype = [shape_of(part)[axes[node]] for part in parts], node.meta["val"].dtype
    each = [
        found[part] if part in found else Constant.nothing(size, dtype)
        for part, size in zip(parts, sizes, strict=True)
    ]

    def build(rewriter: Rewriter) -> fx.Node:
        nodes = [constant.vector.node(rewriter) for constant in each]
        return rewriter.expression(aten.cat.default, nodes)

    vector = Vector(lambda: torch.cat([constant.value for constant in each]), build)
    masks = (
        torch.cat([getattr(constant, name) for constant in each])
        for name in ("known", "zero", "signed")
    )
    return Constant(vector, *masks)


def _none(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool)


def _zeros(size: int, dtype: torch.dtype) -> Vector:
    return Vector(
        lambda: torch.zeros(size, dtype=torch.float64),
        lambda rewriter: rewriter.expression(aten.full.default, [size], 0.0, dtype=dtype),
    )


def _moved(parts: list[tuple[Tensor, Constant]], ids: Tensor) -> Constant:
    """Of a movement: at each place what its feature is where it comes from, if it is one number there."""
    if len(parts) == 1 and torch.equal(parts[0][0], ids):
        return parts[0][1]
    theirs = torch.cat([own for own, _ in parts])
    values = torch.cat([constant.value for _, constant in parts])
    known, zero, signed = (
        torch.cat([getattr(constant, name) for _, constant in parts])
        for name in ("known", "zero", "signed")
    )
    places, masks = torch.zeros_like(ids), [_none(len(ids)) for _ in range(3)]
    for place, feature in enumerate(ids.tolist()):
        sources = (theirs == feature).nonzero().flatten()
        if feature >= 0 and len(sources):
            places[place] = sources[0]
            masks[0][place] = bool(known[sources].all()) and len(values[sources].unique()) == 1
            masks[1][place], masks[2][place] = (
                bool(zero[sources].all()),
                bool(signed[sources].all()),
            )

    def build(rewriter: Rewriter) -> fx.Node:
        nodes = [constant.vector.node(rewriter) for _, constant in parts]
        whole = nodes[0] if len(nodes) == 1 else rewriter.expression(aten.cat.default, nodes)
        index = rewriter.constant(places, "moved")
        return rewriter.expression(aten.index_select.default, whole, 0, index)

    return Constant(Vector(lambda: values[places], build), *masks)


def _elementwise(
    graph: Graph,
    node: fx.Node,
    axes: Mapping[fx.Node, int],
    found: Mapping[fx.Node, Constant],
) -> Constant:
    """Of an op on each element: the op on the numbers; a product with a zero is zero whatever the rest is."""
    size = shape_of(node)[axes[node]]
    given: dict[fx.Node, Vector] = {}
    known, other = torch.ones(size, dtype=torch.bool), []
    for part in dict.fromkeys(node.all_input_nodes):
        if part in found:
            given[part] = found[part].vector
            known &= found[part].known
        elif is_static(part) and _lies_along(part, node, axes):
            given[part] = _flat(graph, part)
        else:
            other.append(part)
    if other:
        return _product(node, found, size)

    def call(run: Any, values: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda part: values[part])
        return run(*args, **kwargs)

    def build(rewriter: Rewriter) -> fx.Node:
        nodes = {part: vector.node(rewriter) for part, vector in given.items()}

        def run(*args: Any, **kwargs: Any) -> fx.Node:
            assert callable(node.target)
            return rewriter.expression(node.target, *args, **kwargs)

        made: fx.Node = call(run, nodes)
        return made

    if kind_of(node) is Kind.AFFINE:
        source, shift = found[node.args[0]], node.args[2]  # type: ignore[index]
        still = given[shift].value == 0 if isinstance(shift, fx.Node) else source.known
        return Constant(_affine(node, given), known, source.zero & still, _none(size))
    vector = Vector(
        lambda: call(node.target, {part: vector.value for part, vector in given.items()}), build
    )
    zero = _zero_behind(node, found, vector.value)
    return Constant(vector, known | zero, zero, _none(size))


def _affine(node: fx.Node, given: Mapping[fx.Node, Vector]) -> Vector:
    x, scale, shift = node.args[:3]
    vector = given[x]  # type: ignore[index]
    if isinstance(scale, fx.Node):
        vector = vector.combine(given[scale], aten.mul.Tensor)
    if isinstance(shift, fx.Node):
        vector = vector.combine(given[shift], aten.add.Tensor)
    return vector


def _product(node: fx.Node, found: Mapping[fx.Node, Constant], size: int) -> Constant:
    """Of an op of which an operand is not known: zero where another factor is."""
    zero = _zero_factor(node, found, size)
    return Constant(_zeros(size, node.meta["val"].dtype), zero, zero, _none(size))


def _zero_behind(node: fx.Node, found: Mapping[fx.Node, Constant], value: Tensor) -> Tensor:
    """Where the result of an op is zero whatever parameters are.

    Sums of zeros, products with one; of functions that pass through zero those that are x g(x), scale, or clip; a
    ReLU of what is negative by the sign of one parameter.
    """
    size, row = len(value), row_of(node)
    if row.kind is Kind.PRODUCT and not row.pointwise:
        return _zero_factor(node, found, size)
    sources = [found[part] for part in node.all_input_nodes if part in found]
    zero = torch.stack([source.zero for source in sources]).all(0) & (value == 0)
    if row.kind is Kind.ADD:
        return zero if len(sources) == len(node.all_input_nodes) else _none(size)
    passes = row.kind in (Kind.HOMOGENEOUS, Kind.PRODUCT) or row.gate or row.numbers == "limits"
    zero = zero if passes else _none(size)
    cut = sources[0].known & sources[0].signed & (sources[0].value < 0) & (value == 0)
    return zero | cut if row.kind is Kind.HOMOGENEOUS or row.numbers == "limits" else zero


def _zero_factor(node: fx.Node, found: Mapping[fx.Node, Constant], size: int) -> Tensor:
    """Where some factor of a product is zero."""
    zero = _none(size)
    if kind_of(node) is Kind.PRODUCT:
        for factor in [node.args[0], *([] if row_of(node).inverts else node.args[1:2])]:
            if isinstance(factor, fx.Node) and factor in found:
                zero = zero | found[factor].zero
    return zero


def _signed(graph: Graph, node: fx.Node) -> Tensor:
    """Where the sign of a vector is that of one of its parameters: nothing but zeros is added to it."""
    size = node.meta["val"].numel()
    row = row_of(node)
    if node.op == "get_attr":
        return torch.ones(size, dtype=torch.bool)
    sides = [part for part in node.args if isinstance(part, fx.Node)]
    if row.kind is Kind.MOVE and len(sides) == 1 and sides[0].meta["val"].numel() == size:
        return _signed(graph, sides[0])
    if (
        row.kind is not Kind.ADD
        or len(sides) != 2
        or any(x.meta["val"].numel() != size for x in sides)
    ):
        return _none(size)
    zeros = [graph.value(part).reshape(-1) == 0 for part in sides]
    return (zeros[0] & _signed(graph, sides[1])) | (zeros[1] & _signed(graph, sides[0]))


def _lies_along(part: fx.Node, node: fx.Node, axes: Mapping[fx.Node, int]) -> bool:
    """True for a parameter that has all its numbers along the axis of the features, or only one."""
    sizes, size = shape_of(part), shape_of(node)[axes[node]]
    if part.meta["val"].numel() not in (1, size):
        return False
    if kind_of(node) is Kind.AFFINE:
        return len(sizes) == 1
    place = axes[node] - (len(shape_of(node)) - len(sizes))
    return all(size == 1 or at == place for at, size in enumerate(sizes))


def _flat(graph: Graph, part: fx.Node) -> Vector:
    return Vector(
        lambda: graph.value(part).reshape(-1),
        lambda rewriter: rewriter.expression(aten.reshape.default, part, [-1]),
    )
