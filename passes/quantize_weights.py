"""quantize-weights: weights of linear ops become integers, or floats of 8 bits, and scales.

W  ->  s round(W / s)        s = max|W| / (2^(bits - 1) - 1) over an output channel, or a block of inputs
W  ->  s e4m3(W / s)         s the least power of two with max|W| / s <= 448, over all of W
W  ->  s round((W + D) / s)  D: what inputs make up for of the rounding of those in front of them (`feedback`)

A weight that is on such a grid already keeps it, and its values. s and D are measured, and constants; the rest is
an expression of W (`on_grid`), which trains with a gradient that passes straight through the rounding until `bake`
stores it in few bits. Rounding is in `normfold.ir.grids` and `normfold.ir.feedback`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from normfold.domains.front_to_back import Oriented, has_windows, rounded_by_feedback
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.graph import shape_of
from normfold.ir.grids import grid_of, kept_scale, limits, spread, top_of
from normfold.ir.intervals import (
    mean_shift,
    measured_mean,
    note_mean,
    note_mean_shift,
    read_mean,
)
from normfold.ir.provenance import module_path
from normfold.ops.integer_ops import on_grid
from normfold.ops.integers import lacks_kernel, mean_of_product, quantized_weight, weighted
from normfold.ops.linear import Linear
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter
from normfold.target import E4M3_TOP, grids_of, power_of_two

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Put weights on grids, one scale per output channel or per block of inputs; of floats of 8 bits one scale for
    all of a weight, which every kernel for them takes. `bake` behind it stores them in few bits.

    Options:
        grid: ``integers``, or ``e4m3``: floats of 8 bits, of which 4 are the exponent and 3 the mantissa.
        bits: 2 to 8. Below 8 they are stored in 8 all the same, but for 4 in blocks.
        block: inputs that share a scale (a power of two from 16); 0: all of an output channel.
        rounding: ``nearest``; ``squant``: errors that cancel over kernels and channels; ``feedback``: each input
            makes up for the errors of those in front of it, as they go together in ``graph.samples``.
        clip: choose each scale by the squared error (below 8 bits; ``feedback`` always does).
        layers: patterns of module paths; all linear ops when empty.
        target: layers that its kernels do not take stay in floats; every layer is taken when empty.

    Exact:    no: values are rounded.
    Declines: not-asked-for, on-a-grid, not-a-matrix (blocks of inputs of anything else than x @ W), no-kernel,
        no-samples (feedback).
    """

    name: ClassVar[str] = "quantize-weights"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    measures: ClassVar[bool] = True
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    grid: Literal["integers", "e4m3"] = "integers"
    bits: Annotated[int, Between(2, 8)] = 8
    block: Annotated[int, Between(0)] = 0
    rounding: Literal["nearest", "squant", "feedback"] = "nearest"
    clip: bool = False
    layers: tuple[str, ...] = ()
    target: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target:
            grids_of(self.target, self.grid)  # refuses an unknown one before any work
        integral = self.bits < 8 or self.block or self.clip or self.rounding != "nearest"
        if self.grid == "e4m3" and integral:
            raise UsageError(
                f"of pass `{self.name}` the options `bits`, `block`, `rounding` and `clip` are for integers",
                found=f"{self}",
                hint="floats of 8 bits have one scale for all of a weight, and are rounded to the nearest",
            )
        if self.block and (self.block < 16 or self.block.bit_count() > 1):
            raise UsageError(
                f"option `block` of pass `{self.name}` is not a block that kernels have",
                found=f"{self.block}",
                hint="a power of two from 16, or 0 for one scale per output channel",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        found = [linear for node in graph.nodes if (linear := weighted(node)) is not None]
        samples = graph.sample_inputs() if self.rounding == "feedback" else []
        fed: dict[Oriented, tuple[Tensor, Tensor]] = {}
        if samples:
            free = [
                x for x in found if self._blocked(x) is None and (has_windows(x) or _on_the_left(x))
            ]
            fed = rounded_by_feedback(graph, free, samples, self.bits, self.block)
        made: dict[Oriented, fx.Node] = {}
        for linear in found:
            yield Match(
                linear.node, (), _Plan(linear, fed.get((linear.weight, linear.in_axis)), made)
            )

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        plan: _Plan = match.plan
        blocked = self._blocked(plan.linear)
        if blocked is not None:
            return blocked
        if self.rounding == "feedback" and plan.fed is None:
            return Decline(Reason.NO_SAMPLES, match.node)
        return match.planned(plan, f"{self.bits} bits")

    def _blocked(self, linear: Linear) -> Decline | None:
        node = linear.node
        path = module_path(node) or node.name
        if self.layers and not any(fnmatch.fnmatchcase(path, item) for item in self.layers):
            return Decline(Reason.NOT_ASKED_FOR, node, "`layers` does not name it")
        if quantized_weight(linear):
            return Decline(Reason.ON_A_GRID, node)
        if self.block and not _on_the_left(linear):
            return Decline(Reason.NOT_A_MATRIX, node)
        if self.target and (why := lacks_kernel(linear, grids_of(self.target, self.grid))):
            return Decline(Reason.NO_KERNEL, node, why)
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        plan: _Plan = match.plan
        node, linear = match.node, weighted(match.node)  # again: what is in front of it is another
        assert linear is not None
        # (inputs, outputs): blocks lie along the rows, and 8-bit floats are dequantised right in front of the op
        product = bool(self.block) or (self.grid == "e4m3" and _on_the_left(linear))
        turned = product and linear.in_axis == 1
        exact = evaluate(rewriter.graph.module, linear.weight)
        exact = exact.t() if turned else exact
        key = linear.weight, linear.in_axis
        values = plan.made.get(key)
        if values is None:
            values = plan.made[key] = self._values(plan, exact, turned, rewriter)
        mean = read_mean(node)
        if mean is not None:
            error = evaluate(rewriter.graph.module, values) - exact
            shift = mean_of_product(linear, mean.double(), error.t() if turned else error)
            note_mean_shift(node, shift)
        if product:
            _product(linear, values, rewriter)
        else:
            rewriter.set_argument(node, linear.weight_position, values, same=True)
        rewriter.record(f"{node.name}: weight in {self.bits} bits")

    def _values(self, plan: _Plan, exact: Tensor, turned: bool, rewriter: Rewriter) -> fx.Node:
        """The weight on its grid; ``exact`` and the result are (inputs, outputs) where it is turned."""
        linear, weight = plan.linear, plan.linear.weight
        dtype = weight.meta["val"].dtype
        axis = 0 if self.block else linear.out_axis
        assert axis is not None
        if self.grid == "e4m3":
            found = _one_scale(exact, dtype)
            how: tuple[Any, ...] = (None, 0, -E4M3_TOP, E4M3_TOP, "e4m3")
        elif plan.fed is None or kept_scale(exact, axis, self.bits, self.block, dtype) is not None:
            found, low = grid_of(exact, axis, self.bits, self.block, self.clip, dtype)
            rounding = "nearest" if self.rounding == "feedback" else self.rounding
            how = (axis, self.block, low, top_of(self.bits), rounding)
        else:
            steps, scale = _placed(plan.fed, linear, self.block)
            error = steps.double() * spread(scale.double(), steps, axis, self.block) - exact
            shift = rewriter.constant((error.t() if turned else error).to(dtype), "feedback")
            weight = rewriter.expression(aten.add.Tensor, weight, shift)
            found = scale.to(dtype)
            how = (axis, self.block, *limits(self.bits, self.block), "nearest")  # itself
        if turned:
            weight = rewriter.expression(aten.t.default, weight)
        own = linear.weight.op == "get_attr"
        name = str(linear.weight.target) if own else linear.node.name
        stored = rewriter.attribute(f"{name}_scale", found)
        return rewriter.expression(on_grid, weight, stored, None, *how)


@dataclass(frozen=True)
class _Plan:
    """A linear op, the integers and scales that feedback found for its weight, and the weights that are done."""

    linear: Linear
    fed: tuple[Tensor, Tensor] | None
    made: dict[Oriented, fx.Node]


def _placed(fed: tuple[Tensor, Tensor], linear: Linear, block: int) -> tuple[Tensor, Tensor]:
    """Integers and scales as the weight has them; as (inputs, outputs) where there are blocks."""
    steps, scale = fed
    if block:
        return steps.t().contiguous(), scale.t().contiguous()
    shape = shape_of(linear.weight)
    straight = linear.kernel or linear.in_axis == 1
    return (steps.reshape(shape) if straight else steps.t().contiguous()), scale[:, 0]


def _on_the_left(linear: Linear) -> bool:
    """True for a matrix that an activation with its features last is multiplied by."""
    return linear.kernel == 0 and linear.in_dim == len(shape_of(linear.data)) - 1


def _one_scale(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale of floats of 8 bits, for all of a weight."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return torch.tensor(power_of_two(largest), dtype=dtype)


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
