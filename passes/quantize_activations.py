"""quantize-activations: tensors go on grids of 8 bits, so that a runtime's integer kernels take the ops between.

x  ->  s (Q - z)        Q = clip(round(x / s) + z), half to even
x  ->  s Q              Q = e4m3(clip(x / s)), s a power of two

One scale and zero point per tensor, from the interval that was measured or derived for it. The
target decides which tensors, and which grids (`normfold.target`). `bake` stores it in few bits (`on_grid`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import fx

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.grids import top_of
from normfold.ir.intervals import range_of
from normfold.ops.integer_ops import on_grid
from normfold.ops.integers import Plan, bytes_of, plan
from normfold.ops.linear import Linear, linear_of
from normfold.ops.table import Kind, bounds, kind_of
from normfold.report import PassReport
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.integers import IntegerForms
from normfold.target import Grids, grids_of

_SCALED = (Kind.MOVE, Kind.AFFINE, Kind.PRODUCT)


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Put the tensors between linear ops whose weights are on grids (`quantize-weights`) on grids.

    Options:
        target: the runtime that will read the file.
        grid: ``integers``, or ``e4m3``: floats of 8 bits, as in `quantize-weights`.
        bits: fewer than 8 stay floats, and no runtime executes them; the inputs of the network and of its last
            layers keep 8.

    Exact:    no: values are rounded.
    Declines: no-interval.
    """

    name: ClassVar[str] = "quantize-activations"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE

    target: str = "ort-x86"
    grid: Literal["integers", "e4m3"] = "integers"
    bits: Annotated[int, Between(2, 8)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._grids()  # refuses an unknown target before any work
        if self.grid == "e4m3" and self.bits < 8:
            raise UsageError(
                f"option `bits` of pass `{self.name}` is for integers", found=f"{self}"
            )

    def _grids(self) -> Grids:
        return grids_of(self.target, self.grid)

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        if not self._grids().outputs:
            return super().run(graph, limit)
        forms = IntegerForms().run(graph, limit)
        report = super().run(graph, None if limit is None else limit - forms.rewrites)
        report.add(forms)
        return report

    def match(self, graph: Graph) -> Iterable[Match]:
        found = plan(graph, self._grids())
        for tensor, origin in found.tensors.items():
            yield Match(tensor, (), (origin, found))
        for node, constant in found.constants.items():
            yield Match(node, (), constant)
        for linear in found.linears:
            if linear.node in found.floats and linear.bias is not None and linear.kernel == 0:
                yield Match(linear.node, (), linear)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if isinstance(match.plan, Linear):
            linear = linear_of(match.node)
            reads_integers = linear is not None and linear.data.target is on_grid
            return match if reads_integers else Decline(Reason.NO_INTERVAL, match.node)
        if isinstance(match.plan, fx.Node):
            return match
        origin, _ = match.plan
        return Decline(Reason.NO_INTERVAL, match.node) if range_of(origin) is None else match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        if isinstance(match.plan, Linear):
            self._bias(match.node, rewriter)
        elif isinstance(match.plan, fx.Node):
            self._constant(match.node, match.plan, rewriter)
        else:
            origin, found = match.plan
            self._activation(match.node, origin, found, rewriter)

    def _activation(
        self, tensor: fx.Node, origin: fx.Node, found: Plan, rewriter: Rewriter
    ) -> None:
        grids, interval = self._grids(), range_of(origin)
        assert interval is not None
        interval = interval.within(bounds(origin))
        bits = 8 if _at_an_end(tensor) else self.bits
        number, zero = grids.grid(interval.low, interval.high, bits)
        if bytes_of(tensor) is not None and not grids.symmetric:
            number, zero = 1.0, grids.limits()[0]  # exact
        scale = rewriter.constant(torch.tensor(number, dtype=tensor.meta["val"].dtype), "scale")
        zeros = rewriter.constant(
            torch.tensor(zero, dtype=getattr(torch, grids.dtype)), "zero_point"
        )
        values = rewriter.insert_after(
            tensor, on_grid, tensor, scale, zeros, None, 0, *grids.limits(bits), grids.rounding
        )
        readers = found.readers.get(tensor)
        for user in list(tensor.users):
            asked = user is not values and (readers is None or user in readers)
            if asked and not (_is_input(tensor) and _is_returned(user)):
                rewriter.replace_input(user, tensor, values)
        rewriter.record(f"{tensor.name}: {interval.low:.4g} to {interval.high:.4g}, {bits} bits")

    def _constant(self, node: fx.Node, constant: fx.Node, rewriter: Rewriter) -> None:
        """Of few numbers, on the grid of 8 bits whose steps are nearest to all of them."""
        first, last = self._grids().limits()
        value = rewriter.graph.value(constant)
        low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
        best = torch.inf
        for steps in range((last - first) // 2, last - first + 1):
            scale = (high - low) / steps or 1.0
            zero = round(first - low / scale)
            rounded = (value / scale).round().add(zero).clamp(first, last).sub(zero) * scale
            error = float((rounded - value).abs().max())
            if error < best:
                best, number, offset = error, scale, zero
        dtype = constant.meta["val"].dtype
        grid = (
            rewriter.constant(torch.tensor(number, dtype=dtype), "scale"),
            rewriter.constant(
                torch.tensor(offset, dtype=getattr(torch, self._grids().dtype)), "zero_point"
            ),
        )
        on = rewriter.expression(on_grid, constant, *grid, None, 0, first, last, "nearest")
        rewriter.replace_input(node, constant, on)
        rewriter.changed(node)
        rewriter.record(f"{node.name}: what it adds, {best:.2g} from the numbers at most")

    def _bias(self, node: fx.Node, rewriter: Rewriter) -> None:
        """The bias in steps of the product's, as kernels with a float result need it."""
        linear = linear_of(node)
        assert linear is not None and linear.bias is not None and linear.bias_position is not None
        of_input, of_weight = linear.data.args[1], linear.weight.args[1]
        scale = rewriter.expression(torch.ops.aten.mul.Tensor, of_input, of_weight)
        top = top_of(32)
        value = rewriter.expression(on_grid, linear.bias, scale, None, 0, 0, -top, top, "nearest")
        rewriter.set_argument(node, linear.bias_position, value, same=True)
        rewriter.record(f"{node.name}: bias in 32 bits")


def _is_input(tensor: fx.Node) -> bool:
    """True for an input of the network, moved, scaled or shifted by parameters."""
    while tensor.op != "placeholder":
        sources = [source for source in tensor.all_input_nodes if not is_static(source)]
        if len(sources) != 1 or kind_of(tensor) not in (*_SCALED, Kind.ADD):
            return False
        (tensor,) = sources
    return True


def _is_returned(node: fx.Node) -> bool:
    """True if what a node reads goes to outputs, moved or scaled: the floats of an input serve there."""
    if node.op == "output":
        return True
    return kind_of(node) in _SCALED and bool(node.users) and all(map(_is_returned, node.users))


def _at_an_end(tensor: fx.Node) -> bool:
    """True for inputs of the network, and for inputs of ops whose result is an output of the network."""
    if tensor.op == "placeholder":
        return True
    return any(reader.op == "output" for user in tensor.users for reader in user.users)
