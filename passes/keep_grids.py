"""keep-grids: weights that are on a grid already are stored as they are, in integers and scales.

x W^T + b  ->  stored_matmul(x, q, s, z) + b        W = s (q - z), with 2, 4 or 8 bits for q
conv(x, W) ->  conv(x, dequantize(q, s))            W = s q, an s per output channel, with 4 or 8 bits for q

q, s and z are read off the values of W (`normfold.ir.known_grids`): binary and ternary weights, and those of
networks that were trained with rounded weights. Nothing is rounded, and the inputs of the products stay floats.

    linear(x, w) with w = 0.5 * [[1, -1, 0, ...]]  ->  stored_matmul(x, [[3, 1, 2, ...]], [[0.5]], None, 256, 2)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, fx, nn

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.graph import shape_of
from normfold.ir.known_grids import BITS, Blocks, blocks_of, channels_of
from normfold.ir.provenance import module_path
from normfold.ir.states import State
from normfold.ops.integer_ops import dequantize, stored_matmul
from normfold.ops.integers import quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.report import Warned
from normfold.report.reasons import Caution
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter

_aten = torch.ops.aten
_WIDE = 4  # bytes of a float
_TABLE, _REPEATS = 1024, 4  # the values of a table of up to 256 occur four times or more
_DEAR = "scales would take as much as they save"
_SHARE = 0.5  # of the floats' bytes: what saves less is left


@dataclass(frozen=True)
class KeepGrids(Pass):
    """Store weights that are on a grid of 2, 4 or 8 bits already as integers, without rounding any of them.

    Options:
        least: bits at least. onnxruntime's products of floats with weights of 4 bits are faster than those with 2
            or 8, which it unpacks at every run.
        layers: patterns of module paths; all linear ops when empty.

    Exact:    one rounding per weight, as when it was stored.
    Declines: not-asked-for, on-a-grid, parameter-shared, no-known-grid, codebook.
    """

    name: ClassVar[str] = "keep-grids"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.BAKED})
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    least: Annotated[int, Between(2, 8)] = 2
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least not in BITS:
            raise UsageError(
                f"option `least` of pass `{self.name}` is not a size that kernels have",
                found=f"{self.least}",
                hint="2, 4 or 8",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        """One site per weight: where it is read first."""
        readers: dict[fx.Node, list[Linear]] = {}
        for node in graph.nodes:
            linear = weighted(node)
            if linear is not None:
                readers.setdefault(linear.weight, []).append(linear)
        for found in readers.values():
            yield Match(found[0].node, (), found)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        # read again: what is rewritten in front of them gives them another input
        readers = [linear for old in match.plan if (linear := weighted(old.node)) is not None]
        first = readers[0]
        path = module_path(match.node) or match.node.name
        if self.layers and not any(fnmatch.fnmatchcase(path, item) for item in self.layers):
            return Decline(Reason.NOT_ASKED_FOR, match.node, "`layers` does not name it")
        if quantized_weight(first):
            return Decline(Reason.ON_A_GRID, match.node)
        if (other := _other_reader(readers)) is not None:
            return Decline(Reason.PARAMETER_SHARED, other)
        exact: Tensor = evaluate(graph.module, first.weight)
        if not is_product(first):
            return self._channels(match, readers, exact)
        found = blocks_of(_rows(first, exact), self.least)
        if found is None:
            return _declined(match, exact, _near(first, exact))
        if found.bytes > _SHARE * exact.numel() * _WIDE:
            return Decline(Reason.NO_KNOWN_GRID, match.node, _DEAR)
        zeros = "" if found.zero_point is None else ", with zero points"
        text = f"{found.bits} bits, a scale for {found.block} inputs{zeros}"
        return match.planned((readers, found), text)

    def _channels(self, match: Match, readers: list[Linear], exact: Tensor) -> Match | Decline:
        """What is not a product of rows: one scale per output channel."""
        linear = readers[0]
        dtype = linear.weight.meta["val"].dtype
        found = channels_of(exact, linear.out_axis, dtype=dtype, negative=True)
        if found is None:
            return _declined(match, exact, _near(linear, exact))
        integers, steps = found
        bits = (
            4 if self.least <= 4 and int(integers.amax()) < 8 and int(integers.amin()) >= -8 else 8
        )
        if exact.numel() * bits / 8 + steps.numel() * _WIDE > _SHARE * exact.numel() * _WIDE:
            return Decline(Reason.NO_KNOWN_GRID, match.node, _DEAR)
        warnings: tuple[Warned, ...] = ()
        if linear.kernel and int(integers.abs().amax()) <= 1:
            text = f"its weights are {'binary' if bool((integers != 0).all()) else 'ternary'}"
            warnings = (Warned(match.path, Caution.FEW_BITS.code, text),)
        plan = (readers, (integers.to(torch.int8), steps, bits))
        return match.planned(plan, f"{bits} bits, a scale per output channel", warnings=warnings)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        readers, found = match.plan
        weight: fx.Node = readers[0].weight
        name = str(weight.target) if weight.op == "get_attr" else match.node.name

        def stored(ending: str, value: Tensor) -> fx.Node:
            return rewriter.attribute(f"{name}_{ending}", nn.Parameter(value, requires_grad=False))

        if isinstance(found, Blocks):
            q, scale = stored(f"int{found.bits}", found.integers), stored("scale", found.scale)
            zero = None if found.zero_point is None else stored("zero_point", found.zero_point)
            for linear in readers:
                _product(linear, (q, scale, zero, found.block, found.bits), rewriter)
            rewriter.record(f"{match.node.name}: weight in {found.bits} bits")
            return
        integers, steps, bits = found
        q, scale = stored(f"int{bits}", integers), stored("scale", steps)
        values = rewriter.expression(dequantize, q, scale, None, readers[0].out_axis, 0, bits)
        for linear in readers:
            rewriter.set_argument(linear.node, linear.weight_position, values, same=True)
        rewriter.record(f"{match.node.name}: weight in {bits} bits")


def is_product(linear: Linear) -> bool:
    """True for x @ W with the inputs along the last axis of x, or the same with a transposed W."""
    return not linear.kernel and linear.out_dim == len(shape_of(linear.node)) - 1


def _rows(linear: Linear, weight: Tensor) -> Tensor:
    """The weight as (outputs, inputs)."""
    return weight if linear.out_axis == 0 else weight.t()


def _other_reader(readers: list[Linear]) -> fx.Node | None:
    """What else reads the weight, or what it is made of, or reads it in another form: it would be stored twice."""
    first, nodes = readers[0], {linear.node for linear in readers}
    for linear in readers:
        if (is_product(linear), linear.out_axis) != (is_product(first), first.out_axis):
            return linear.node
    stack = [first.weight]
    while stack:
        node = stack.pop()
        other = next((user for user in node.users if user not in nodes), None)
        if other is not None:
            return other
        nodes.add(node)
        stack += node.all_input_nodes
    return None


def _declined(match: Match, weight: Tensor, detail: str) -> Decline:
    """Of a weight without a grid: those of a table occur many times, if zeros are left aside."""
    values = weight[weight != 0]
    few = len(values[:_TABLE].unique()) <= _TABLE // _REPEATS  # sorting all may take long
    if few and not detail:
        count = len(values.unique())
        if count <= min(_TABLE, len(values)) // _REPEATS:
            return Decline(Reason.CODEBOOK, match.node, f"{count} values")
    return Decline(Reason.NO_KNOWN_GRID, match.node, detail)


def _near(linear: Linear, weight: Tensor) -> str:
    """What is known of a weight in half precision that was on a grid before it was rounded to its type."""
    dtype = linear.weight.meta["val"].dtype
    if dtype.itemsize > 2:
        return ""
    if is_product(linear):
        found = blocks_of(_rows(linear, weight), stored=dtype)
        bits = None if found is None else found.bits
    else:
        bits = 8 if channels_of(weight, linear.out_axis, stored=dtype) is not None else None
    name = str(dtype).removeprefix("torch.")
    return "" if bits is None else f"it was on one of {bits} bits before it was rounded to {name}"


def _product(
    linear: Linear, stored: tuple[fx.Node, fx.Node, fx.Node | None, int, int], rewriter: Rewriter
) -> None:
    """x @ W + b with stored integers."""
    result = rewriter.insert_before(linear.node, stored_matmul, linear.data, *stored)
    if linear.bias is not None:
        result = rewriter.insert_before(linear.node, _aten.add.Tensor, result, linear.bias)
    rewriter.replace(linear.node, result)
