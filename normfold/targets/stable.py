"""Ops whose translation by torch.onnx overflows, cancels or rounds otherwise than torch: in forms that do not.

log1p(u) as Log(1 + u) loses what is below an ulp of 1, log sigmoid as Log(Sigmoid(x)) underflows, and quotients of
integers pass through float32. Each form here is torch's result up to a few ulp, for infinities too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from normfold.ir.graph import argument
from normfold.targets.calls import call

_aten = torch.ops.aten
_FLOAT, _BOOL, _DOUBLE = 1, 9, 11  # TensorProto's
_LOGARITHMS = {
    _aten.sigmoid.default: _aten.log_sigmoid.default,
    _aten.softmax.int: _aten.log_softmax.int,
    _aten._softmax.default: _aten._log_softmax.default,
}
_BOUNDED = {
    _aten.clamp.default: ("min", "max"),
    _aten.clamp_min.default: ("min", ""),
    _aten.clamp_max.default: ("", "max"),
    _aten.clamp.Tensor: ("min", "max"),
    _aten.clamp_min.Tensor: ("min", ""),
    _aten.clamp_max.Tensor: ("", "max"),
}


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them."""
    return _logarithms() | _quotients() | _angles()


def _constant(number: float, kind: Any) -> Any:
    """A number as a value of a type: a plain one would be float32."""
    import onnx_ir as ir
    from onnxscript import opset18 as op

    return op.Constant(value=ir.tensor(number, dtype=kind))


def _logarithms() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def softplus(x: Any, kind: Any) -> Any:
        if kind != _DOUBLE:
            return op.Softplus(x)
        zero = _constant(0, kind)  # onnxruntime has no Softplus of float64
        return op.Add(op.Max(x, zero), log1p(op.Exp(op.Neg(op.Abs(x))), kind))

    def log_sigmoid(x: Any) -> Any:
        return op.Neg(softplus(op.Neg(x), x.dtype))

    def log1p(x: Any, kind: Any = None) -> Any:
        """log(w), w = 1 + x rounded, and what the rounding took: (x - (w - 1)) / w."""
        one = _constant(1, x.dtype if kind is None else kind)
        w = op.Add(x, one)
        kept = op.Sub(w, one)
        log = op.Log(w)
        corrected = op.Add(log, op.Div(op.Sub(x, kept), w))
        return op.Where(op.Equal(kept, x), log, corrected)

    def expm1(x: Any) -> Any:
        """2 t / (1 - t), t = tanh(x / 2), where exp(x) is near 1."""
        one, half = _constant(1, x.dtype), _constant(0.5, x.dtype)
        t = op.Tanh(op.Mul(x, half))
        near = op.Div(op.Add(t, t), op.Sub(one, t))
        return op.Where(op.Less(op.Abs(x), half), near, op.Sub(op.Exp(x), one))

    def added(x: Any, y: Any, unit: float) -> Any:
        """The larger one and softplus(-|x - y|); two infinities differ by NaN, and equal ones are shifted."""
        scale, back, same = (
            _constant(number, x.dtype) for number in (-unit, 1 / unit, math.log(2) / unit)
        )
        distance = op.Mul(op.Abs(op.Sub(x, y)), scale)
        apart = op.Add(op.Max(x, y), op.Mul(softplus(distance, x.dtype), back))
        return op.Where(op.Equal(x, y), op.Add(x, same), apart)

    def logaddexp(x: Any, y: Any) -> Any:
        return added(x, y, 1.0)

    def logaddexp2(x: Any, y: Any) -> Any:
        return added(x, y, math.log(2))

    return {
        _aten.log_sigmoid.default: log_sigmoid,
        _aten.log1p.default: log1p,
        _aten.special_log1p.default: log1p,
        _aten.expm1.default: expm1,
        _aten.special_expm1.default: expm1,
        _aten.logaddexp.default: logaddexp,
        _aten.logaddexp2.default: logaddexp2,
    }


def _quotients() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def values(a: Any, b: Any) -> tuple[Any, Any, Any]:
        """The type of both, and both as values: one of them may be a number."""
        kind = (b if isinstance(a, int | float) else a).dtype
        a, b = (_constant(x, kind) if isinstance(x, int | float) else x for x in (a, b))
        return kind, a, b

    def opposite(rest: Any, divisor: Any, zero: Any) -> Any:
        return op.Less(op.Mul(op.Sign(rest), op.Sign(divisor)), zero)

    def remainder(a: Any, b: Any) -> Any:
        """Exact, with the sign of the divisor: what fmod leaves, and the divisor where signs differ."""
        kind, a, b = values(a, b)
        if kind.is_integer():
            return op.Mod(a, b)
        rest = op.Mod(a, b, fmod=1)
        return op.Where(opposite(rest, b, _constant(0, kind)), op.Add(rest, b), rest)

    def fmod(a: Any, b: Any) -> Any:
        """ONNX has it for floats; onnxruntime's for integers passes through float64."""
        kind, a, b = values(a, b)
        if kind.is_integer():
            return op.Sub(a, op.Mul(op.Div(a, b), b))
        return op.Mod(a, b, fmod=1)

    def floor_divide(a: Any, b: Any) -> Any:
        """Of floats (a - a mod b) / b as torch takes it: 1 // 0.1 is 9, although 1 / 0.1 is rounded to 10.

        Of integers the quotient towards zero, and one less where signs differ and something is left.
        """
        kind, a, b = values(a, b)
        zero, one = _constant(0, kind), _constant(1, kind)
        if kind.is_integer():
            below = op.Equal(op.Less(a, zero), op.Greater(b, zero))
            below = op.And(below, op.Cast(op.Mod(a, b), to=_BOOL))
            return op.Sub(op.Div(a, b), op.Cast(below, to=kind))
        rest = op.Mod(a, b, fmod=1)
        whole = op.Round(op.Div(op.Sub(a, rest), b))
        whole = op.Where(opposite(rest, b, zero), op.Sub(whole, one), whole)
        return op.Where(op.Equal(b, zero), op.Div(a, b), whole)

    def divide(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
        if rounding_mode == "floor":
            return floor_divide(a, b)
        kind, a, b = values(a, b)
        if kind.is_integer() and rounding_mode == "trunc":
            return op.Div(a, b)
        if kind.is_integer():
            a, b = op.Cast(a, to=_FLOAT), op.Cast(b, to=_FLOAT)
        quotient = op.Div(a, b)
        if rounding_mode is None:
            return quotient
        return op.Mul(op.Floor(op.Abs(quotient)), op.Sign(quotient))

    return {
        _aten.remainder.Tensor: remainder,
        _aten.remainder.Scalar: remainder,
        _aten.remainder.Scalar_Tensor: remainder,
        _aten.fmod.Tensor: fmod,
        _aten.fmod.Scalar: fmod,
        _aten.floor_divide.default: floor_divide,
        _aten.div.Tensor_mode: divide,
        _aten.div.Scalar_mode: divide,
    }


def _angles() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def negative(x: Any, zero: Any) -> Any:
        """True for -0 as well."""
        return op.Less(op.Where(op.Equal(x, zero), op.Reciprocal(x), x), zero)

    def atan2(y: Any, x: Any) -> Any:
        """By octants: the angle to the nearer axis, which is that of 1 where both are infinite."""
        zero, half, whole = (_constant(number, x.dtype) for number in (0, math.pi / 2, math.pi))
        wide, high = op.Abs(x), op.Abs(y)
        near, far = op.Min(wide, high), op.Max(wide, high)
        ratio = op.Where(op.Equal(near, far), op.Sign(far), op.Div(near, far))
        angle = op.Atan(ratio)
        angle = op.Where(op.Less(wide, high), op.Sub(half, angle), angle)
        angle = op.Where(negative(x, zero), op.Sub(whole, angle), angle)
        return op.Where(negative(y, zero), op.Neg(angle), angle)

    return {_aten.atan2.default: atan2}


def write_all(graph: fx.Graph) -> int:
    """Write what takes several nodes, in place; returns how many."""
    writers = (write_logarithms, write_divisors, write_means, write_losses, write_bounds)
    return sum(write(graph) for write in writers)


def write_logarithms(graph: fx.Graph) -> int:
    """Write the logarithm of a sigmoid or softmax as one op, in place; returns how many.

    onnxruntime's sigmoid is 0 from -18 on, where float32 reaches to -103.
    """
    found = [
        node
        for node in graph.nodes
        if node.target is _aten.log.default and node.args[0].target in _LOGARITHMS
    ]
    for node in found:
        source: Any = node.args[0]
        with graph.inserting_before(node):
            result = call(graph, node, _LOGARITHMS[source.target], *source.args, **source.kwargs)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        if not source.users:
            graph.erase_node(source)
    return len(found)


def write_divisors(graph: fx.Graph) -> int:
    """Write averages that are divided by another number than that of their window as products; returns how many.

    The exporter leaves the divisor out.
    """
    found = [
        node
        for node in graph.nodes
        if node.target is _aten.avg_pool2d.default
        and argument(node, "divisor_override") is not None
        and not argument(node, "ceil_mode")  # windows over the end have other sizes
    ]
    for node in found:
        sizes: Any = argument(node, "kernel_size")
        count = sizes[0] * sizes[-1]
        with graph.inserting_before(node):
            stride, padding = argument(node, "stride"), argument(node, "padding")
            mean = call(graph, node, node.target, node.args[0], sizes, stride, padding)
            factor = count / argument(node, "divisor_override")
            result = call(graph, node, _aten.mul.Tensor, mean, factor)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def write_means(graph: fx.Graph) -> int:
    """Write scatters that average as a sum and a count, in place; returns how many.

    ONNX has no such reduction, and the exporter adds instead.
    """
    target = _aten.scatter_reduce.two
    found = [
        node for node in graph.nodes if node.target is target and argument(node, "reduce") == "mean"
    ]
    for node in found:
        x, dim, index, source = node.args[:4]
        own = argument(node, "include_self")
        with graph.inserting_before(node):
            total = call(graph, node, target, x, dim, index, source, "sum", include_self=own)
            start = _aten.ones_like.default if own else _aten.zeros_like.default
            ones = call(graph, node, _aten.ones_like.default, source)
            count = call(graph, node, start, x)
            count = call(graph, node, target, count, dim, index, ones, "sum", include_self=True)
            count = call(graph, node, _aten.clamp.default, count, 1)  # where nothing came
            result = call(graph, node, _aten.div.Tensor, total, count)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def write_losses(graph: fx.Graph) -> int:
    """Write cross entropies with smoothed labels as their parts, in place; returns how many.

    The exporter leaves the smoothing out: (1 - s) nll(log p) - s mean(log p). Weighted and masked ones stay.
    """
    found = [
        node
        for node in graph.nodes
        if node.target is _aten.cross_entropy_loss.default
        and argument(node, "label_smoothing")
        and argument(node, "weight") is None
        and node.args[1].meta["val"].dtype == torch.int64
    ]
    for node in found:
        scores, labels = node.args[:2]
        amount, reduction = argument(node, "label_smoothing"), argument(node, "reduction")
        ignored = argument(node, "ignore_index")
        with graph.inserting_before(node):
            classes = min(1, scores.meta["val"].dim() - 1)
            logs = call(graph, node, _aten.log_softmax.int, scores, classes)
            uniform = call(graph, node, _aten.mean.dim, logs, [classes])
            uniform = call(graph, node, _aten.neg.default, uniform)
            hidden = call(graph, node, _aten.eq.Scalar, labels, ignored)
            index = call(graph, node, _aten.masked_fill.Scalar, labels, hidden, 0)
            index = call(graph, node, _aten.unsqueeze.default, index, classes)
            chosen = call(graph, node, _aten.gather.default, logs, classes, index)
            chosen = call(graph, node, _aten.squeeze.dim, chosen, classes)
            result = call(graph, node, _aten.mul.Tensor, chosen, amount - 1)
            uniform = call(graph, node, _aten.mul.Tensor, uniform, amount)
            result = call(graph, node, _aten.add.Tensor, result, uniform)
            result = call(graph, node, _aten.masked_fill.Scalar, result, hidden, 0.0)
            if reduction:
                result = call(graph, node, _aten.sum.default, result)
            if reduction == 1:
                seen = call(graph, node, _aten.logical_not.default, hidden)
                seen = call(graph, node, _aten.to.dtype, seen, node.meta["val"].dtype)
                count = call(graph, node, _aten.sum.default, seen)
                result = call(graph, node, _aten.div.Tensor, result, count)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def write_bounds(graph: fx.Graph) -> int:
    """Give clamps of float32 with one bound the other, in place; returns how many.

    Without it, onnxruntime clips infinities to the largest number. A bound that only the run knows makes a maximum
    or a minimum.
    """
    found = [
        node
        for node in graph.nodes
        if node.target in _BOUNDED and node.meta["val"].dtype == torch.float32
    ]
    for node in found:
        names = _BOUNDED[node.target]
        low, high = (_number(argument(node, name)) if name else None for name in names)
        if (low is None) == (high is None):
            continue
        bound = high if low is None else low
        if isinstance(bound, fx.Node):
            if bound.meta["val"].dtype != torch.float32:
                continue
            node.target = _aten.minimum.default if low is None else _aten.maximum.default
            node.args = (node.args[0], bound)
        else:
            node.target = _aten.clamp.default
            bounds = [-math.inf if low is None else low, math.inf if high is None else high]
            node.args = (node.args[0], *map(float, bounds))
        node.kwargs = {}
    return len(found)


def _number(bound: Any) -> Any:
    """The number that a bound is, where it is one."""
    made = isinstance(bound, fx.Node) and bound.target is _aten.scalar_tensor.default
    return bound.args[0] if made else bound
