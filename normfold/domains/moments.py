"""Moments of tensors: a mean, a variance and an interval for each element, derived from what norms store.

Linear ops and moves are run as they are (on the variance with squared weights), elementwise functions are
integrated against a normal density (for a ReLU: Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction", appendix B). Where statistics give the mean and deviation of a tensor, those
are used instead. Elements are treated as independent. A tensor that no statistics reach is unknown, never guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.custom_ops import along
from normfold.ir.evaluation import Domain
from normfold.ir.expressions import gives_other_numbers, is_static
from normfold.ir.graph import argument, concrete, shape_of
from normfold.ir.intervals import Interval
from normfold.ir.statistics import Statistics, statistics_of
from normfold.ops.linear import linear_of
from normfold.ops.reads import is_tuple, operands, reads_shape_only
from normfold.ops.table import Kind, kind_of, norm_of, row_of

DEVIATIONS = 6.0  # how far from its mean a value may be: ranges that real data fill
_POINTS = 49


@dataclass(frozen=True)
class Moments:
    """Mean, variance and interval of every element of a tensor."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor

    def map(self, move: Callable[[Tensor], Any]) -> Moments:
        return Moments(move(self.mean), move(self.variance), move(self.low), move(self.high))

    @property
    def interval(self) -> Interval:
        return Interval(float(self.low.min()), float(self.high.max()))


def normal(mean: Tensor, variance: Tensor) -> Moments:
    """A normal distribution, cut off at `DEVIATIONS`."""
    far = DEVIATIONS * variance.sqrt()
    return Moments(mean, variance, mean - far, mean + far)


class OfMoments(Domain):
    """Numbers are distributions: see the head of this file.

    A value is a `Moments`, or *exact* (a tensor or a number made of parameters and sizes alone), or None: unknown.
    An op with an unknown operand has an unknown result; nothing is ever executed with None.
    """

    def __init__(self, inputs: Interval | None = None) -> None:
        self.inputs = inputs
        self.found: dict[fx.Node, Moments] = {}
        self.env: Mapping[fx.Node, Any] = {}

    def input(self, node: fx.Node, value: Any) -> Any:
        return self._noted(node, self._stated(node) or self._input(node))

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if is_static(node):
            return super().call(node, values)
        self.env = values
        return self._noted(node, self._stated(node) or self._value(node))

    def _stated(self, n: fx.Node) -> Moments | None:
        """What the statistics of a norm say of a tensor."""
        statistics = statistics_of(n)
        if statistics is None or bool(statistics.mean.isnan().any()):
            return None
        return _of_statistics(statistics, shape_of(n))

    def _noted(self, n: fx.Node, value: Any) -> Any:
        made = n.meta.get("val")
        if isinstance(value, Tensor | Moments) and isinstance(made, Tensor):
            shape = (value.mean if isinstance(value, Moments) else value).shape
            if tuple(shape) != shape_of(n):  # the captured size is a stand-in for the data's
                return None
            if made.is_floating_point():
                self.found[n] = _moments_of(value)
        return value

    def _value(self, n: fx.Node) -> Any:
        made = n.meta.get("val")
        if made is None or (isinstance(made, torch.SymInt) and made.node.hint is None):
            return None  # an assertion; a size that data decide
        if isinstance(made, int | torch.SymInt):
            return concrete(made)
        if n.target is operator.getitem:
            parts = self.env[n.args[0]]  # type: ignore[index]
            return parts[n.args[1]] if isinstance(parts, list | tuple) else None  # type: ignore[index]
        if row_of(n).attention:
            return self._attended(n)
        read = _read_by(n)
        if any(self.env[source] is None for source in read):
            return None
        carriers = [source for source in read if not _is_exact(self.env[source])]
        if not carriers:
            return self._executed(n) if _is_function(n) else None
        rounded = isinstance(made, Tensor) and not made.is_floating_point()
        if rounded or not all(isinstance(self.env[source], Moments) for source in carriers):
            return None
        return self._computed(n, carriers)

    def _input(self, n: fx.Node) -> Moments | None:
        value = n.meta.get("val")
        if self.inputs is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        low, high = self.inputs.low, self.inputs.high
        shape = shape_of(n)
        parts = ((low + high) / 2, (high - low) ** 2 / 12, low, high)  # even over the interval
        return Moments(*(torch.tensor(part).expand(shape) for part in parts))

    def _computed(self, n: fx.Node, carriers: list[fx.Node]) -> Any:
        """The result of an op; the inputs in ``carriers`` are moments, all others are exact."""
        row, kind = row_of(n), kind_of(n)
        if kind is Kind.ADD:
            return self._sum(n)
        if kind is Kind.PRODUCT and not row.inverts and not row.pointwise:
            return self._product(n)
        if kind in (Kind.MOVE, Kind.MIX, Kind.MONOTONE):
            return self._moved(n) if set(carriers) <= set(operands(n)) else None
        if len(carriers) > 1:
            return None
        if row.pointwise:
            x = self.env[carriers[0]].map(lambda part: part.expand(shape_of(n)))
            return _integrated(lambda part: self._executed(n, {carriers[0]: part}), x)
        if kind is Kind.LINEAR:
            return self._linear(n)
        if carriers[0] is not n.args[0]:
            return None
        if kind is Kind.AFFINE or _is_affine_norm(n):
            return _first(n, self._affine(n))
        if norm_of(n, "shape", "channels"):
            return _first(n, self._normalised(n))
        return None

    def _executed(self, n: fx.Node, values: dict[fx.Node, Tensor] | None = None) -> Any:
        """The op on exact values, and on ``values`` in place of those that are not."""
        args = tuple(
            _lent(arg) if isinstance(arg, fx.Node) and reads_shape_only(n, position) else arg
            for position, arg in enumerate(n.args)
        )
        given = values or {}
        args, kwargs = fx.map_arg(
            (args, n.kwargs), lambda node: given[node] if node in given else self.env[node]
        )
        assert callable(n.target)
        return n.target(*args, **kwargs)

    def _normalised(self, n: fx.Node) -> Moments:
        """A norm of the data's own statistics: mean square 1 before its gain and bias."""
        made, names = n.meta["val"], {spec.name for spec in n.target._schema.arguments}  # type: ignore[union-attr]
        shape = [concrete(size) for size in (made[0] if is_tuple(n) else made).shape]
        gain, bias = (argument(n, key) if key in names else None for key in ("weight", "bias"))
        scale = self.env[gain] if gain is not None else torch.ones(())
        shift = self.env[bias] if bias is not None else torch.zeros(())
        if norm_of(n, "channels"):  # gain and bias stand along axis 1
            scale, shift = (along(x, 1, len(shape)) if x.dim() else x for x in (scale, shift))
        return normal(shift.expand(shape), (scale**2).expand(shape))

    def _affine(self, n: fx.Node) -> Moments:
        """``x * a + b``, one a and b per channel."""
        source = n.args[0]
        assert isinstance(source, fx.Node)
        x = self.env[source]

        def run(part: Tensor) -> Tensor:
            y = self._executed(n, {source: part})
            return y[0] if is_tuple(n) else y  # type: ignore[no-any-return]

        scale = run(torch.ones_like(x.mean)) - run(torch.zeros_like(x.mean))
        ends = run(x.low), run(x.high)
        return Moments(
            run(x.mean), x.variance * scale**2, torch.minimum(*ends), torch.maximum(*ends)
        )

    def _moved(self, n: fx.Node) -> Any:
        """The op, run on each of the four; a split gives one for each part."""
        sources = {source: self._operand(source) for source in operands(n)}
        found = []
        for field in fields(Moments):
            values = {node: getattr(x, field.name).contiguous() for node, x in sources.items()}
            found.append(self._executed(n, values))
        if isinstance(found[0], Tensor):
            return Moments(*found)
        return [
            Moments(*parts) if parts[0].is_floating_point() else None
            for parts in zip(*found, strict=True)
        ]

    def _linear(self, n: fx.Node) -> Moments | None:
        linear = linear_of(n)
        assert linear is not None
        if row_of(n).lookup:
            return None
        x, weight = self.env[linear.data], self.env[linear.weight]
        mean = self._executed(n, {linear.data: x.mean.contiguous()})
        values = {linear.data: x.variance.contiguous(), linear.weight: weight * weight}
        if linear.bias is not None:
            values[linear.bias] = torch.zeros_like(self.env[linear.bias])
        return normal(mean, self._executed(n, values))

    def _sum(self, n: fx.Node) -> Moments:
        left, right = (self._operand(side) for side in n.args[:2])
        alpha = argument(n, "alpha", 1)
        alpha = float(self.env[alpha] if isinstance(alpha, fx.Node) else alpha)
        right = _scaled(right, -alpha if row_of(n).inverts else alpha)
        mean, variance = left.mean + right.mean, left.variance + right.variance
        far = normal(mean, variance)
        low, high = left.low + right.low, left.high + right.high
        return Moments(mean, variance, torch.maximum(far.low, low), torch.minimum(far.high, high))

    def _product(self, n: fx.Node) -> Moments:
        left, right = (self._operand(side) for side in n.args[:2])
        mean = left.mean * right.mean
        variance = (
            left.variance * right.variance
            + left.variance * right.mean**2
            + right.variance * left.mean**2
        )
        corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
        low, high = corners[0], corners[0]
        for corner in corners[1:]:
            low, high = torch.minimum(low, corner), torch.maximum(high, corner)
        return Moments(mean, variance, low, high)

    def _attended(self, n: fx.Node) -> Moments | None:
        """Weights that sum to one over the tokens, known or not: nothing leaves the interval of the values."""
        source, shape = argument(n, "value"), shape_of(n)
        if self.env[source] is None:
            return None
        values = self._operand(source)

        def spread(x: Tensor) -> Tensor:
            if x.dim() > 2 and x.shape[-3] not in (1, shape[-3]):  # heads that share their values
                x = x.repeat_interleave(shape[-3] // x.shape[-3], -3)
            return x.expand(shape)

        return Moments(
            spread(values.mean.mean(-2, keepdim=True)),
            spread(values.variance.amax(-2, keepdim=True)),
            spread(values.low.amin(-2, keepdim=True)),
            spread(values.high.amax(-2, keepdim=True)),
        )

    def _operand(self, side: Any) -> Moments:
        return _moments_of(self.env[side] if isinstance(side, fx.Node) else side)


def _is_exact(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else (value,)
    return not any(part is None or isinstance(part, Moments) for part in parts)


def _moments_of(value: Any) -> Moments:
    """The moments of a known value: an exact one does not vary."""
    if isinstance(value, Moments):
        return value
    value = torch.as_tensor(value).detach()
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return Moments(value, torch.zeros_like(value), value, value)


def _read_by(n: fx.Node) -> list[fx.Node]:
    """The inputs of an op whose values it reads, not just their shapes or types."""
    args = [arg for position, arg in enumerate(n.args) if not reads_shape_only(n, position)]
    found: dict[fx.Node, None] = {}
    fx.map_arg((args, n.kwargs), lambda node: found.setdefault(node))
    return list(found)


def _lent(node: fx.Node) -> Tensor:
    """A tensor of the shape and type of one that only lends these."""
    value = node.meta["val"]
    return torch.zeros((), dtype=value.dtype, device=value.device).expand(shape_of(node))


def _is_function(n: fx.Node) -> bool:
    """True if an op gives the same result for the same inputs, and writes to none of them."""
    if not isinstance(n.target, torch._ops.OpOverload):  # arithmetic on sizes, or control flow
        return not isinstance(n.target, torch._ops.HigherOrderOperator)
    return not gives_other_numbers(n.target) and not n.target._schema.is_mutable


def _is_affine_norm(n: fx.Node) -> bool:
    """True for a norm whose statistics are constants."""
    if norm_of(n, "channels"):
        return not argument(n, "use_input_stats", True)
    return norm_of(n, "batch") is not None and not argument(n, "training", False)


def _first(n: fx.Node, x: Moments) -> Any:
    """``x`` as the first of the results that an op has."""
    return [x] + [None] * (len(n.meta["val"]) - 1) if is_tuple(n) else x


def _of_statistics(statistics: Statistics, shape: tuple[int, ...]) -> Moments:
    view = [1] * len(shape)
    view[statistics.dim] = -1
    found = normal(statistics.mean.float(), statistics.std.float() ** 2)
    return found.map(lambda x: x.reshape(view).expand(shape))


def _scaled(x: Moments, factor: float) -> Moments:
    ends = (x.low * factor, x.high * factor) if factor >= 0 else (x.high * factor, x.low * factor)
    return Moments(x.mean * factor, x.variance * factor**2, *ends)


def _tight(x: Tensor) -> Tensor:
    """Without the copies along axes where every value is the same one in memory."""
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if size > 1 and stride == 0:
            x = x.narrow(dim, 0, 1)
    return x


def _integrated(function: Callable[[Tensor], Tensor], x: Moments) -> Moments:
    """Moments of a function of a normal variable, and the values that it takes within its interval."""
    shape = x.mean.shape
    tight = x.map(_tight)
    deviation = tight.variance.sqrt()
    points = torch.linspace(-DEVIATIONS, DEVIATIONS, _POINTS).tolist()
    weights = torch.tensor([-0.5 * z * z for z in points]).softmax(0).tolist()
    first = second = None
    low = high = function(tight.low)
    for z, weight in zip(points, weights, strict=True):
        value = tight.mean + z * deviation
        y = function(torch.minimum(torch.maximum(value, tight.low), tight.high))
        first = y * weight if first is None else first + y * weight
        second = y * y * weight if second is None else second + y * y * weight
        low, high = torch.minimum(low, y), torch.maximum(high, y)
    assert first is not None and second is not None
    top = function(tight.high)
    found = Moments(
        first, (second - first**2).clamp_min(0), torch.minimum(low, top), torch.maximum(high, top)
    )
    return found.map(lambda part: part.expand(shape))
