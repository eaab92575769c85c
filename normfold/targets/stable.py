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
_FLOAT, _BOOL = 1, 9  # TensorProto's
_LOGARITHMS = {
    _aten.sigmoid.default: _aten.log_sigmoid.default,
    _aten.softmax.int: _aten.log_softmax.int,
    _aten._softmax.default: _aten._log_softmax.default,
}
_BOUNDED = {
    _aten.clamp.default: ("min", "max"),
    _aten.clamp_min.default: ("min", ""),
    _aten.clamp_max.default: ("", "max"),
}


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them."""
    return _logarithms() | _quotients() | _angles()


def _logarithms() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def log_sigmoid(x: Any) -> Any:
        return op.Neg(op.Softplus(op.Neg(x)))

    def log1p(x: Any) -> Any:
        """log(w), w = 1 + x rounded, and what the rounding took: (x - (w - 1)) / w."""
        w = op.Add(x, 1.0)
        kept = op.Sub(w, 1.0)
        log = op.Log(w)
        corrected = op.Add(log, op.Div(op.Sub(x, kept), w))
        return op.Where(op.Equal(kept, x), log, corrected)

    def expm1(x: Any) -> Any:
        """2 t / (1 - t), t = tanh(x / 2), where exp(x) is near 1."""
        t = op.Tanh(op.Mul(x, 0.5))
        near = op.Div(op.Mul(t, 2.0), op.Sub(1.0, t))
        return op.Where(op.Less(op.Abs(x), 0.5), near, op.Sub(op.Exp(x), 1.0))

    def added(x: Any, y: Any, unit: float) -> Any:
        """The larger one and softplus(-|x - y|); two infinities differ by NaN, and equal ones are shifted."""
        distance = op.Mul(op.Abs(op.Sub(x, y)), -unit)
        apart = op.Add(op.Max(x, y), op.Mul(op.Softplus(distance), 1 / unit))
        return op.Where(op.Equal(x, y), op.Add(x, math.log(2) / unit), apart)

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
    import onnx_ir as ir
    from onnxscript import opset18 as op

    def constant(number: float, kind: Any) -> Any:
        return op.Constant(value=ir.tensor(number, dtype=kind))

    def values(a: Any, b: Any) -> tuple[Any, Any, Any]:
        """The type of both, and both as values: one of them may be a number."""
        kind = (b if isinstance(a, int | float) else a).dtype
        a, b = (constant(x, kind) if isinstance(x, int | float) else x for x in (a, b))
        return kind, a, b

    def opposite(rest: Any, divisor: Any, zero: Any) -> Any:
        return op.Less(op.Mul(op.Sign(rest), op.Sign(divisor)), zero)

    def remainder(a: Any, b: Any) -> Any:
        """Exact, with the sign of the divisor: what fmod leaves, and the divisor where signs differ."""
        kind, a, b = values(a, b)
        if kind.is_integer():
            return op.Mod(a, b)
        rest = op.Mod(a, b, fmod=1)
        return op.Where(opposite(rest, b, constant(0, kind)), op.Add(rest, b), rest)

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
        zero, one = constant(0, kind), constant(1, kind)
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

    def negative(x: Any) -> Any:
        """True for -0 as well."""
        return op.Less(op.Where(op.Equal(x, 0.0), op.Reciprocal(x), x), 0.0)

    def atan2(y: Any, x: Any) -> Any:
        """By octants: the angle to the nearer axis, which is that of 1 where both are infinite."""
        wide, high = op.Abs(x), op.Abs(y)
        near, far = op.Min(wide, high), op.Max(wide, high)
        ratio = op.Where(op.Equal(near, far), op.Sign(far), op.Div(near, far))
        angle = op.Atan(ratio)
        angle = op.Where(op.Less(wide, high), op.Sub(math.pi / 2, angle), angle)
        angle = op.Where(negative(x), op.Sub(math.pi, angle), angle)
        return op.Where(negative(y), op.Neg(angle), angle)

    return {_aten.atan2.default: atan2}


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


def write_bounds(graph: fx.Graph) -> int:
    """Give clamps of float32 with one bound the other, in place; returns how many.

    Without it, onnxruntime clips infinities to the largest number.
    """
    found = [
        node
        for node in graph.nodes
        if node.target in _BOUNDED and node.meta["val"].dtype == torch.float32
    ]
    for node in found:
        low, high = (argument(node, name) if name else None for name in _BOUNDED[node.target])
        if (low is None) == (high is None):
            continue
        node.target, node.kwargs = _aten.clamp.default, {}
        node.args = (
            node.args[0],
            -math.inf if low is None else low,
            math.inf if high is None else high,
        )
    return len(found)
