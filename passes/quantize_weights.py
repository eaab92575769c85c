"""quantize-weights: weights of linear ops become integers and scales.

W  ->  s round(W / s)        s = max|W| / (2^(bits - 1) - 1) over an output channel, or a block of inputs

s is measured, and a constant; the rest is an expression of W (`on_grid`), which trains with a gradient that passes
straight through the rounding until `bake` makes integers of it. Rounding is in `normfold.ir.grids`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import fx

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.grids import scale_of, top_of
from normfold.ir.intervals import (
    mean_shift,
    measured_mean,
    note_mean,
    note_mean_shift,
    read_mean,
)
from normfold.ir.provenance import module_path
from normfold.ops.integer_ops import on_grid
from normfold.ops.integers import mean_of_product, quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Put weights on grids, one scale per output channel or per block of inputs. `bake` behind it stores integers.

    Options:
        bits: 2 to 8. Below 8 they are stored in 8 all the same, but for 4 in blocks.
        block: inputs that share a scale (a power of two from 16); 0: all of an output channel.
        rounding: ``nearest``, or ``squant``: errors that cancel over kernels and channels.
        clip: choose each scale by the squared error (below 8 bits).
        layers: patterns of module paths; all linear ops when empty.

    Exact:    no: values are rounded.
    Declines: not-asked-for, on-a-grid, not-a-matrix (blocks of inputs of a convolution).
    """

    name: ClassVar[str] = "quantize-weights"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    bits: Annotated[int, Between(2, 8)] = 8
    block: Annotated[int, Between(0)] = 0
    rounding: Literal["nearest", "squant"] = "nearest"
    clip: bool = False
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block and (self.block < 16 or self.block.bit_count() > 1):
            raise UsageError(
                f"option `block` of pass `{self.name}` is not a block that kernels have",
                found=f"{self.block}",
                hint="a power of two from 16, or 0 for one scale per output channel",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            linear = weighted(node)
            if linear is not None:
                yield Match(node, (), linear)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        path = module_path(match.node) or match.node.name
        if self.layers and not any(fnmatch.fnmatchcase(path, item) for item in self.layers):
            return Decline(Reason.NOT_ASKED_FOR, match.node, "`layers` does not name it")
        if quantized_weight(match.plan):
            return Decline(Reason.ON_A_GRID, match.node)
        if self.block and match.plan.kernel:
            return Decline(Reason.NOT_A_MATRIX, match.node)
        return match.planned(match.plan, f"{self.bits} bits")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, linear = match.node, weighted(match.node)  # what it reads may be another op by now
        assert linear is not None
        weight, axis = linear.weight, linear.out_axis
        turned = (
            bool(self.block) and linear.in_axis == 1
        )  # blocks lie along the rows: kernels take that form
        if turned:
            weight = rewriter.expression(aten.t.default, weight)
        if self.block:
            axis = 0
        assert axis is not None
        exact, dtype = evaluate(rewriter.graph.module, weight), weight.meta["val"].dtype
        name = str(linear.weight.target) if linear.weight.op == "get_attr" else node.name
        scale = rewriter.attribute(
            f"{name}_scale", scale_of(exact, axis, self.bits, self.block, self.clip, dtype)
        )
        top = top_of(self.bits)
        values = rewriter.expression(
            on_grid, weight, scale, None, axis, self.block, -top, top, self.rounding
        )
        mean = read_mean(node)
        if mean is not None:
            error = evaluate(rewriter.graph.module, values) - exact
            shift = mean_of_product(linear, mean.double(), error.t() if turned else error)
            note_mean_shift(node, shift)
        if self.block:
            _product(linear, values, rewriter)
        else:
            rewriter.set_argument(node, linear.weight_position, values, same=True)
        rewriter.record(f"{node.name}: weight in {self.bits} bits")


def _product(linear: Linear, weight: fx.Node, rewriter: Rewriter) -> None:
    """x @ W + b, with W as (inputs, outputs)."""
    product = rewriter.insert_before(linear.node, aten.matmul.default, linear.data, weight)
    mean, shift, result = measured_mean(linear.node), mean_shift(linear.node), product
    if linear.bias is not None:
        result = rewriter.insert_before(linear.node, aten.add.Tensor, product, linear.bias)
    if mean is not None:
        if linear.bias is not None:
            mean = mean - evaluate(rewriter.graph.module, linear.bias)
        note_mean(product, mean)
    if shift is not None:
        note_mean_shift(product, shift)
    rewriter.replace(linear.node, result)
