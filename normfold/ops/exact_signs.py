"""Decisions by the sign: maxima, ReLUs, clamps, comparisons.

The larger of two is the one from which the other is taken off with a positive rest. Shifts and positive scales
pass, as they do for real numbers; that of three the largest is larger than both others is not so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.ops.arithmetic import HIDDEN, Arithmetic, Call, NoMeaning, axes, number, sides
from normfold.ops.exact_sums import sizes_of


def larger(f: Arithmetic, x: Tensor, y: Tensor) -> Tensor:
    """The larger one: x where x - y is positive. It follows any shift, and any positive scale."""
    if bool((x == HIDDEN).any()) or bool((y == HIDDEN).any()):
        seen = torch.where(x == HIDDEN, y, x), torch.where(y == HIDDEN, x, y)
        both = (x == HIDDEN) & (y == HIDDEN)
        shown = larger(f, *(torch.where(both, 0.0, part) for part in seen))
        return torch.where(both, HIDDEN, shown)
    return torch.where(f.sign(f.sub(x, y)) == 1, x, y)


def smaller(f: Arithmetic, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(f.sign(f.sub(x, y)) == 1, y, x)


def maximum(f: Arithmetic, c: Call) -> Tensor:
    return larger(f, *sides(f, c))


def minimum(f: Arithmetic, c: Call) -> Tensor:
    return smaller(f, *sides(f, c))


def largest(f: Arithmetic, x: Tensor, dim: int) -> Tensor:
    """The winner of pairs of neighbours along an axis."""
    while (size := x.shape[dim]) > 1:
        half = size // 2
        rest = x.narrow(dim, 2 * half, size - 2 * half)
        pairs = x.narrow(dim, 0, 2 * half).unflatten(dim, (half, 2))
        won = larger(f, pairs.select(dim + 1, 0), pairs.select(dim + 1, 1))
        x = torch.cat([won, rest], dim)
    return x


def amax(f: Arithmetic, c: Call) -> Any:
    if "other" in c.values:
        return (maximum if c.name == "max" else minimum)(f, c)
    x, sign = c["self"], number(f, -1 if c.name in ("amin", "min") else 1)
    dims = axes(c.get("dim"), x.dim())
    x = f.mul(x, sign)
    for dim in dims:
        x = largest(f, x, dim)
    if not c.get("keepdim"):
        x = x.squeeze(dims)
    return winners(c, f.mul(x, sign))


def max_pool(f: Arithmetic, c: Call) -> Any:
    """The largest of each window: what is outside never wins."""
    x = c["self"]
    spatial = next(int(letter) for letter in c.name if letter.isdigit())
    kernel, stride, padding, dilation = (
        sizes_of(value, spatial)
        for value in (
            c["kernel_size"],
            c["stride"] or c["kernel_size"],
            c["padding"],
            c["dilation"],
        )
    )
    shape = pytree.tree_leaves(c.run(self=x.new_zeros(x.shape)))[0].shape
    for axis in range(spatial):
        size, out = x.shape[axis - spatial], shape[axis - spatial]
        reach = (out - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        ends = [padding[axis], max(0, reach - size - padding[axis])]
        wide = torch.nn.functional.pad(
            x.movedim(axis - spatial, -1), ends, value=HIDDEN if any(ends) else 0.0
        )
        starts = torch.arange(out).unsqueeze(1) * stride[axis]
        windows = wide[..., starts + torch.arange(kernel[axis]) * dilation[axis]]
        won = largest(f, windows, windows.dim() - 1).squeeze(-1)
        x = won.movedim(-1, axis - spatial)
    return winners(c, x)


def adaptive_max_pool(f: Arithmetic, c: Call) -> Any:
    x, sizes = c["self"], [int(size) for size in c["output_size"]]
    if set(sizes) != {1}:
        raise NoMeaning("windows of several sizes")
    for axis in range(len(sizes)):
        x = largest(f, x, x.dim() - len(sizes) + axis)
    return winners(c, x)


def winners(c: Call, x: Tensor) -> Any:
    """What has won, beside where it stood if that is a result that nobody reads."""
    if not isinstance(c.node.meta["val"], (list, tuple)):
        return x
    if any(user.args[1] != 0 for user in c.node.users):
        raise NoMeaning("it tells which element is the largest")
    return x, torch.zeros(0, dtype=torch.int64)


def clamped(f: Arithmetic, x: Tensor, low: Any, high: Any) -> Tensor:
    if low is not None and not endless(low):
        x = larger(f, x, f.element(low))
    return x if high is None or endless(high) else smaller(f, x, f.element(high))


def endless(limit: Any) -> bool:
    return isinstance(limit, float) and abs(limit) > 1e30


def clamp(f: Arithmetic, c: Call) -> Tensor:
    low, high = (c.get(name, c.get(f"{name}_val")) for name in ("min", "max"))
    return clamped(f, c["self"], low, high)


def relu(f: Arithmetic, c: Call) -> Tensor:
    x = c["self"]
    return torch.where(f.sign(x) == 1, x, 0.0)


def leaking(f: Arithmetic, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(f.sign(x) == 1, x, f.mul(x, slope))


def leaky_relu(f: Arithmetic, c: Call) -> Tensor:
    return leaking(f, c["self"], f.element(c["negative_slope"]))


def prelu(f: Arithmetic, c: Call) -> Tensor:
    x, weight = c["self"], c["weight"]
    if c.name == "prelu" and weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (x.dim() - 2))
    return leaking(f, x, weight)


def absolute(f: Arithmetic, c: Call) -> Tensor:
    return f.mul(c["self"], f.element(f.sign(c["self"])))


def sign(f: Arithmetic, c: Call) -> Tensor:
    return f.element(f.sign(c["self"]))


def threshold(f: Arithmetic, c: Call) -> Tensor:
    above = f.sign(f.sub(c["self"], f.element(c["threshold"]))) == 1
    return torch.where(above, c["self"], f.element(c["value"]))


def hard_gate(f: Arithmetic, x: Tensor) -> Tensor:
    inside = clamped(f, f.add(x, number(f, 3)), 0, 6)
    return f.mul(inside, number(f, 1, 6))


def hardsigmoid(f: Arithmetic, c: Call) -> Tensor:
    return hard_gate(f, c["self"])


def hardswish(f: Arithmetic, c: Call) -> Tensor:
    return f.mul(c["self"], hard_gate(f, c["self"]))


def relu6(f: Arithmetic, c: Call) -> Tensor:
    return clamped(f, c["self"], 0, 6)


def compared(f: Arithmetic, c: Call) -> Tensor:
    left, right = sides(f, c)
    if c.name in ("eq", "ne"):
        left, right = f.counted(left), f.counted(right)
        return (left == right) if c.name == "eq" else (left != right)
    sign = f.sign(f.sub(left, right))
    return {"lt": sign < 0, "le": sign <= 0, "gt": sign > 0, "ge": sign >= 0}[c.name]
