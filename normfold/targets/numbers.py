"""How arithmetic on sizes is written in ONNX: operators of Python that torch.onnx lacks, or rounds otherwise."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them. An operand is a number or a value of the file."""
    from onnxscript import opset18 as op

    def floor_divide(a: Any, b: Any) -> Any:
        """Python rounds down, an integer Div of ONNX towards zero."""
        if _is_float(a) or _is_float(b):
            return op.Floor(op.Div(a, b))
        return op.Div(op.Sub(a, op.Mod(a, b)), b)

    def remainder(a: Any, b: Any) -> Any:
        """With the sign of the divisor, for floats too."""
        if _is_float(a) or _is_float(b):
            return op.Sub(a, op.Mul(b, op.Floor(op.Div(a, b))))
        return op.Mod(a, b)

    def rounded(x: Any, digits: int | None = None) -> Any:
        if digits is None:
            return op.Cast(op.Round(x), to=_INT64)  # half to even, as Python
        return op.Div(op.Round(op.Mul(x, 10.0**digits)), 10.0**digits)

    def root(x: Any) -> Any:
        return op.Sqrt(x)

    def shifted_right(a: Any, bits: int) -> Any:
        return floor_divide(a, 2**bits)

    def shifted_left(a: Any, bits: int) -> Any:
        return op.Mul(a, 2**bits)

    def both(a: Any, b: Any) -> Any:
        return op.And(a, b) if _is_bool(a) else op.BitwiseAnd(a, b)

    return {
        operator.floordiv: floor_divide,
        operator.mod: remainder,
        round: rounded,
        torch._sym_sqrt: root,  # type: ignore[attr-defined]
        operator.rshift: shifted_right,
        operator.lshift: shifted_left,
        operator.and_: both,
    }


_BOOL, _INT64 = 9, 7  # TensorProto's


def _is_float(x: Any) -> bool:
    kind = getattr(x, "dtype", None)
    return isinstance(x, float) if kind is None else bool(kind.is_floating_point())


def _is_bool(x: Any) -> bool:
    return isinstance(x, bool) or getattr(x, "dtype", None) == _BOOL
