"""What values the tensors of a network take, derived from the statistics that its norms remember.

The network is run on moments: every tensor is a mean, a variance and an interval for each element. Linear ops and
moves are run as they are (on the variance with squared weights), elementwise functions are integrated against a
normal density (for a ReLU: Nagel et al. 2019, "Data-free quantization through weight equalization and bias
correction", appendix B), and where a norm has told the mean and deviation of a tensor, they are taken instead.
Elements are taken as independent. A tensor that no norm reaches is unknown, never guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from normfold.graph import Graph
from normfold.graph.expressions import is_static
from normfold.graph.graph import argument, concrete, op_name, shape_of
from normfold.graph.integers import weighted
from normfold.graph.intervals import Interval, bounds, note_read_mean
from normfold.graph.ops import NORM_OPS, Kind, kind_of, linear_of, operands
from normfold.graph.statistics import Statistics, known

DEVIATIONS = (
    6.0  # how far from its mean a value may be: ranges that real data fill (research: n = 6)
)
_POINTS = 49
_ELEMENTWISE = frozenset(
    [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "elu",
        "selu",
        "celu",
        "mish",
        "softplus",
        "log_sigmoid",
        "softsign",
        "threshold",
        "clamp",
        "clamp_min",
        "clamp_max",
        "exp",
        "abs",
        "square",
        "leaky_relu",
        "neg",
        "sqrt",
        "pow",
    ]
)


@dataclass(frozen=True)
class Moments:
    """Of every element of a tensor: mean, variance, and the interval that its values lie in."""

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


def moments(graph: Graph, inputs: Interval | None = None) -> dict[fx.Node, Moments]:
    """The moments of every tensor for which they can be derived.

    Args:
        graph: folded or not; its nodes carry the statistics of the norms (`normfold.graph.statistics`).
        inputs: the values that valid inputs take, where that is known.
    """
    runner = _Runner(graph, inputs)
    with torch.no_grad():
        runner.run(*(None for node in graph.nodes if node.op == "placeholder"))
    return {
        node: value
        for node, value in runner.found.items()
        if bool(value.low.isfinite().all()) and bool(value.high.isfinite().all())
    }


def derive(graph: Graph, inputs: Interval | None = None) -> dict[fx.Node, Interval]:
    """The interval of every tensor that can be derived; what linear ops read on average is noted with them."""
    found = moments(graph, inputs)
    for node in graph.nodes:
        linear = weighted(node)
        read = found.get(linear.data) if linear is not None else None
        if linear is not None and read is not None and linear.in_dim is not None:
            rest = [dim for dim in range(read.mean.dim()) if dim != linear.in_dim]
            note_read_mean(node, read.mean.double().mean(rest))
    return {node: value.interval.within(bounds(node)) for node, value in found.items()}


def assumed(graph: Graph) -> set[fx.Node]:
    """Tensors whose interval rests on a LayerNorm or RMSNorm: that its result is normal is no statistic."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        rests = op_name(node) in NORM_OPS or any(part in found for part in node.all_input_nodes)
        if rests and known(node) is None:
            found.add(node)
    return found


class _Runner(fx.Interpreter):
    def __init__(self, graph: Graph, inputs: Interval | None) -> None:
        super().__init__(graph.module)
        self.inputs = inputs
        self.found: dict[fx.Node, Moments] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["enable_io_processing"] = False
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return None
        if n.op in ("get_attr", "call_function") and is_static(n):
            return super().run_node(n)
        value = self._moments(n)
        if isinstance(value, Moments):
            self.found[n] = value
        return value

    def _moments(self, n: fx.Node) -> Any:
        statistics = known(n)
        if statistics is not None and not bool(statistics.mean.isnan().any()):
            return _of_statistics(statistics, shape_of(n))
        if n.op == "placeholder":
            return self._input(n)
        made = n.meta.get("val")
        if isinstance(made, int | torch.SymInt):  # a size
            return concrete(made)
        if n.target is operator.getitem:
            source = n.args[0]
            assert isinstance(source, fx.Node)
            parts = self.env.get(source)
            return parts[n.args[1]] if parts is not None else None
        sources = [self.env.get(source) for source in operands_of(n)]
        if not sources:  # parameters spread to a size that the input has
            value = super().run_node(n)
            return _constant(value) if isinstance(value, Tensor) else None
        if any(source is None for source in sources):
            return None
        return self._computed(n, sources)

    def _input(self, n: fx.Node) -> Moments | None:
        value = n.meta.get("val")
        if self.inputs is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        low, high = self.inputs.low, self.inputs.high
        shape = shape_of(n)
        parts = ((low + high) / 2, (high - low) ** 2 / 12, low, high)  # even over the interval
        return Moments(*(torch.tensor(part).expand(shape) for part in parts))

    def _computed(self, n: fx.Node, sources: list[Any]) -> Any:
        name, kind = op_name(n), kind_of(n)
        first = sources[0]
        if name in _ELEMENTWISE:
            return _integrated(lambda x: self._call(n, x), first)
        if kind is Kind.LINEAR:
            return self._linear(n, first)
        if kind is Kind.ADD:
            return self._sum(n)
        if name == "mul":
            return self._product(n)
        if (kind is Kind.MOVE and len(sources) == 1) or kind in (Kind.MIX, Kind.MONOTONE):
            return self._moved(n, first)
        if kind is Kind.MOVE and name in ("cat", "concat"):
            dim = argument(n, "dim", 0)
            parts = ([getattr(s, f) for s in sources] for f in ("mean", "variance", "low", "high"))
            return Moments(*(torch.cat(part, dim) for part in parts))
        if name == "scaled_dot_product_attention":
            values = self.env.get(n.args[2])  # type: ignore[arg-type]
            return _attended(values) if values is not None else None
        if name in NORM_OPS:
            return self._normalised(n)
        return None

    def _normalised(self, n: fx.Node) -> Moments:
        """A LayerNorm or RMSNorm: mean square 1 before its gain and bias."""
        shape, names = shape_of(n), {spec.name for spec in n.target._schema.arguments}  # type: ignore[union-attr]
        gain, bias = (argument(n, key) if key in names else None for key in ("weight", "bias"))
        scale = self.env[gain] if gain is not None else torch.ones(())
        shift = self.env[bias] if bias is not None else torch.zeros(())
        return normal(shift.expand(shape), (scale**2).expand(shape))

    def _moved(self, n: fx.Node, x: Moments) -> Any:
        """By an op that is run on each of the four; a split gives one for each part."""
        found = [self._call(n, part.contiguous()) for part in (x.mean, x.variance, x.low, x.high)]
        if isinstance(found[0], Tensor):
            return Moments(*found)
        return [Moments(*parts) for parts in zip(*found, strict=True)]

    def _call(self, n: fx.Node, x: Tensor) -> Any:
        """The op with ``x`` as its operand."""
        operand = operands_of(n)[0]
        args, kwargs = fx.map_arg(
            (n.args, n.kwargs), lambda node: x if node is operand else self.env[node]
        )
        assert callable(n.target)
        return n.target(*args, **kwargs)

    def _linear(self, n: fx.Node, x: Moments) -> Moments | None:
        linear = linear_of(n)
        assert linear is not None
        if op_name(n) == "embedding":
            return None
        mean = self._call(n, x.mean.contiguous())
        args = list(n.args)
        weight = self.env[linear.weight]
        values = {linear.data: x.variance.contiguous(), linear.weight: weight * weight}
        bias = linear.bias
        if bias is not None:
            values[bias] = torch.zeros_like(self.env[bias])
        args, kwargs = fx.map_arg((args, n.kwargs), lambda node: values.get(node, self.env[node]))
        assert callable(n.target)
        return normal(mean, n.target(*args, **kwargs))

    def _sum(self, n: fx.Node) -> Moments | None:
        sides = [self._operand(side) for side in n.args[:2]]
        alpha = float(n.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        sign = -alpha if op_name(n) == "sub" else alpha
        left, right = sides[0], _scaled(sides[1], sign)
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

    def _operand(self, side: Any) -> Moments:
        value = self.env[side] if isinstance(side, fx.Node) else torch.tensor(float(side))
        return value if isinstance(value, Moments) else _constant(value)


def _constant(value: Tensor) -> Moments:
    return Moments(value, torch.zeros_like(value), value, value)


def operands_of(n: fx.Node) -> list[fx.Node]:
    """The activations that an op computes with."""
    linear = linear_of(n)
    if linear is not None:
        return [linear.data]
    return [node for node in operands(n) if not is_static(node)] if n.args else []


def _of_statistics(statistics: Statistics, shape: tuple[int, ...]) -> Moments:
    view = [1] * len(shape)
    view[statistics.dim] = -1
    found = normal(statistics.mean.float(), statistics.std.float() ** 2)
    return found.map(lambda x: x.reshape(view).expand(shape))


def _scaled(x: Moments, factor: float) -> Moments:
    low, high = sorted((x.low * factor, x.high * factor), key=lambda part: float(part.sum()))
    return Moments(x.mean * factor, x.variance * factor**2, low, high)


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


def _attended(values: Moments) -> Moments:
    """Weights that sum to one over the tokens: nothing leaves the interval of the values."""

    def spread(x: Tensor) -> Tensor:
        return x.expand(values.mean.shape)

    return Moments(
        spread(values.mean.mean(-2, keepdim=True)),
        values.variance,
        spread(values.low.amin(-2, keepdim=True)),
        spread(values.high.amax(-2, keepdim=True)),
    )
