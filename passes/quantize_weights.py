"""quantize-weights: weights of linear ops become integers and scales.

W  ->  s Q        Q = round(W / s), s = max|W| / (2^(bits - 1) - 1) over an output channel, or a block of inputs

Rounding is in `normfold.ir.grids`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.grids import Grid, to_grid
from normfold.ir.intervals import (
    mean_shift,
    measured_mean,
    note_mean,
    note_mean_shift,
    read_mean,
)
from normfold.ir.provenance import module_path
from normfold.ops.integer_ops import dequantize
from normfold.ops.integers import mean_of_product, quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Put the weights of a baked graph on grids, one scale per output channel or per block of inputs.

    Options:
        bits: 2 to 8. Below 8 they are stored in 8 all the same, but for 4 in blocks.
        block: inputs that share a scale (a power of two from 16); 0: all of an output channel.
        rounding: ``nearest``, or ``squant``: errors that cancel over kernels and channels.
        clip: choose each scale by the squared error (below 8 bits).
        layers: patterns of module paths; all linear ops when empty.

    Exact:    no: values are rounded.
    Declines: not-asked-for, not-a-matrix (blocks of inputs of a convolution).
    """

    name: ClassVar[str] = "quantize-weights"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    bits: Annotated[int, Between(2, 8)] = 8
    block: Annotated[int, Between(0)] = 0
    rounding: Literal["nearest", "squant"] = "nearest"
    clip: bool = False
    layers: tuple[str, ...] = ()

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            linear = weighted(node)
            if linear is not None and not quantized_weight(linear):
                yield Match(node, (), linear)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        path = module_path(match.node) or match.node.name
        if self.layers and not any(fnmatch.fnmatchcase(path, item) for item in self.layers):
            return Decline(Reason.NOT_ASKED_FOR, match.node, "`layers` does not name it")
        if self.block and match.plan.kernel:
            return Decline(Reason.NOT_A_MATRIX, match.node)
        return match.planned(match.plan, f"{self.bits} bits")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        linear: Linear = match.plan
        weight = evaluate(rewriter.graph.module, linear.weight)
        axis = linear.in_axis if self.block else linear.out_axis
        assert axis is not None
        grid = to_grid(weight, axis, self.bits, self.block, self.rounding, self.clip)
        name = str(linear.weight.target) if linear.weight.op == "get_attr" else match.node.name
        mean = read_mean(match.node)
        if mean is not None:
            error = grid.values - weight.double()
            note_mean_shift(match.node, mean_of_product(linear, mean.double(), error))
        if self.block:
            self._blocks(linear, grid, name, rewriter)
        else:
            steps = rewriter.attribute(f"{name}_int{self.bits}", grid.steps)
            scale = rewriter.attribute(f"{name}_scale", grid.scale)
            # written out: some of onnxruntime's kernels are not chosen where it is missing
            none = torch.zeros_like(grid.scale).to(torch.int8)
            zeros = rewriter.attribute(f"{name}_zero_point", none)
            values = rewriter.expression(dequantize, steps, scale, zeros, axis, 0, 8)
            rewriter.set_argument(match.node, linear.weight_position, values, same=True)
        rewriter.record(f"{match.node.name}: weight in {self.bits} bits")

    def _blocks(self, linear: Linear, grid: Grid, name: str, rewriter: Rewriter) -> None:
        """x @ W + b with W as (inputs, outputs) and blocks along the inputs: the form that kernels take."""
        steps, scale = grid.steps, grid.scale
        if linear.in_axis == 1:
            steps, scale = steps.t().contiguous(), scale.t().contiguous()
        stored = rewriter.attribute(f"{name}_int{self.bits}", steps)
        scales = rewriter.attribute(f"{name}_scale", scale)
        bits = 4 if self.bits == 4 else 8
        values = rewriter.expression(dequantize, stored, scales, None, 0, self.block, bits)
        product = rewriter.insert_before(linear.node, aten.matmul.default, linear.data, values)
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
