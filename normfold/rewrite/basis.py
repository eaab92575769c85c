"""Bases of the zero-sum space: d numbers that sum to zero, kept as d - 1.

With S = sum of y and i < d,

    y_i = x_i - gamma x_d        x_i = y_i - alpha S,  x_d = -beta S        W x = sum_i (W_i - r) y_i
                                                                           r = alpha sum_i W_i + beta W_d

drop-last     gamma = 0, alpha = 0, beta = 1: one coordinate is left out (Jiang et al. 2023, arXiv 2305.14858).
orthonormal   the reflection H = 1 - 2 v v' / v'v with v = (1, ..., 1) / sqrt(d) + e_d maps (1, ..., 1) to the
              last axis, so that (H x)_d = 0 and |y| = |x|: gamma = 1 / (sqrt(d) + 1), alpha = gamma / sqrt(d),
              beta = 1 / sqrt(d).

For the norm, sum x^2 = sum y^2 + S^2 (drop-last) or sum y^2 (orthonormal). The latter makes a stock RMSNorm:

    x / sqrt(sum x^2 / d + eps)  <-  sqrt(d / (d - 1)) y / sqrt(sum y^2 / (d - 1) + eps d / (d - 1))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

aten = torch.ops.aten
Emit = Callable[..., fx.Node]
Name = Literal["orthonormal", "drop-last"]


@dataclass(frozen=True)
class Basis:
    """The basis ``name`` of zero-sum vectors of ``width`` d. ``emit`` of the methods adds one op to a graph."""

    name: Name
    width: int

    @property
    def kept(self) -> int:
        """Numbers that are stored."""
        return self.width - 1

    @property
    def gamma(self) -> float:
        return 1 / (math.sqrt(self.width) + 1) if self.name == "orthonormal" else 0.0

    @property
    def alpha(self) -> float:
        return self.gamma / math.sqrt(self.width)

    @property
    def beta(self) -> float:
        return 1 / math.sqrt(self.width) if self.name == "orthonormal" else 1.0

    @property
    def factor(self) -> float:
        """What a narrow norm's result is to be multiplied by to be the wide one's, in this basis."""
        return math.sqrt(self.width / (self.width - 1)) if self.name == "orthonormal" else 1.0

    def narrow(self, emit: Emit, x: fx.Node, axis: int) -> fx.Node:
        """y of x: a tensor, or the parameters of what writes it."""
        head = emit(aten.slice.Tensor, x, axis, 0, self.width - 1)
        if not self.gamma:
            return head
        last = emit(aten.slice.Tensor, x, axis, self.width - 1, self.width)
        return emit(aten.sub.Tensor, head, emit(aten.mul.Tensor, last, self.gamma))

    def widen(self, emit: Emit, y: fx.Node, axis: int, factor: float) -> fx.Node:
        """``factor`` times x of y, with S / (d - 1) in place of S, which could overflow in half precision."""
        count = self.width - 1
        mean = emit(aten.mean.dim, y, [axis], True)
        head = y
        if self.alpha:
            head = emit(aten.sub.Tensor, y, emit(aten.mul.Tensor, mean, self.alpha * count))
        x = emit(aten.cat.default, [head, emit(aten.mul.Tensor, mean, -self.beta * count)], axis)
        return x if factor == 1 else emit(aten.mul.Tensor, x, factor)

    def read(self, emit: Emit, weight: fx.Node, axis: int, factor: float) -> fx.Node:
        """The weight that gives of y what ``weight``, along ``axis``, gives of ``factor`` times x."""
        head = emit(aten.slice.Tensor, weight, axis, 0, self.width - 1)
        last = emit(aten.slice.Tensor, weight, axis, self.width - 1, self.width)
        if self.alpha:
            # alpha = gamma beta: each is a number that a certificate can read, and the product is not
            total = emit(
                aten.mul.Tensor, emit(aten.sum.dim_IntList, head, [axis], True), self.gamma
            )
            last = emit(aten.mul.Tensor, emit(aten.add.Tensor, total, last), self.beta)
        result = emit(aten.sub.Tensor, head, last)
        return result if factor == 1 else emit(aten.mul.Tensor, result, factor)

    def norm(self, emit: Emit, y: fx.Node, eps: float, dtype: torch.dtype) -> fx.Node:
        """The RMS norm of x over its last axis, in y and without `factor`."""
        if self.name == "orthonormal":
            count = self.width - 1
            return emit(aten.rms_norm.default, y, [count], None, eps * self.width / count)
        half = dtype in (torch.float16, torch.bfloat16)  # squares overflow: as the stock norm does
        x = emit(aten.to.dtype, y, torch.float32) if half else y
        total = emit(aten.sum.dim_IntList, x, [-1], True)
        squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, x, x), [-1], True)
        squares = emit(aten.add.Tensor, squares, emit(aten.mul.Tensor, total, total))
        mean = emit(aten.mul.Tensor, squares, 1 / self.width)
        scale = emit(aten.rsqrt.default, emit(aten.add.Tensor, mean, eps))
        result = emit(aten.mul.Tensor, x, scale)
        return emit(aten.to.dtype, result, dtype) if half else result
