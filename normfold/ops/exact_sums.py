"""Sums, averages, products of matrices, convolutions and interpolations in exact arithmetic.

Each runs the op of torch on float64 integers, in pieces that are short enough to stay exact, and reduces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normfold.ops.arithmetic import Arithmetic, Call, NoMeaning, axes, number

_NEAR = 1e-11  # of a weight and the rational that it is


def total(f: Arithmetic, c: Call) -> Tensor:
    """A sum without products: any length is exact."""
    return f.reduce(c["self"].sum(axes(c.get("dim"), c["self"].dim()), bool(c.get("keepdim"))))


def mean(f: Arithmetic, c: Call) -> Tensor:
    x = c["self"]
    return average(f, x, axes(c.get("dim"), x.dim()), bool(c.get("keepdim")))


def average(f: Arithmetic, x: Tensor, dims: list[int], keep: bool = True) -> Tensor:
    """The mean over some axes."""
    count = math.prod(x.shape[dim] for dim in dims)
    return f.mul(f.reduce(x.sum(dims, keep)), f.tally(count)) if dims else x


def global_pool(f: Arithmetic, c: Call) -> Tensor:
    return average(f, c["x"], list(range(2, c["x"].dim())))


def product(f: Arithmetic, c: Call) -> Tensor:
    x = c["self"]
    dims = axes(c.get("dim"), x.dim())
    found = number(f, 1)
    for part in x.movedim(dims, list(range(len(dims)))).flatten(0, len(dims) - 1).unbind(0):
        found = f.mul(found, part)
    if c.get("keepdim"):
        for dim in sorted(dims):
            found = found.unsqueeze(dim)
    return found


def summed(f: Arithmetic, c: Call) -> Tensor:
    """Ops whose result has sums of elements, as torch runs them."""
    if c.get("alpha", 1) != 1 or c.get("reduce") not in (None, "add", "sum"):
        raise NoMeaning("it does more than to sum")
    result: Tensor = c.run()
    return f.reduce(result)


# -- products of matrices ---------------------------------------------------------------------------


def times(f: Arithmetic, x: Tensor, y: Tensor) -> Tensor:
    """x @ y."""
    axis = -2 if y.dim() > 1 else 0
    found: Tensor | None = None
    for start in range(0, x.shape[-1], f.longest):
        size = min(f.longest, x.shape[-1] - start)
        product = torch.matmul(x.narrow(-1, start, size), y.narrow(axis, start, size))
        part = f.reduce(visible(product), size)
        found = part if found is None else f.add(found, part)
    return f.reduce(torch.matmul(x, y)) if found is None else found


def visible(x: Tensor) -> Tensor:
    """What a product gives, unless something hidden got into it."""
    if not bool(x.sum().isfinite()):
        raise NoMeaning("it multiplies minus infinity")
    return x


def matmul(f: Arithmetic, c: Call) -> Tensor:
    return times(f, c["self"], c.get("other", c.get("mat2", c.get("vec", c.get("tensor")))))


def linear(f: Arithmetic, c: Call) -> Tensor:
    found = times(f, c["input"], c["weight"].t())
    return found if c["bias"] is None else f.add(found, c["bias"])


def addmm(f: Arithmetic, c: Call) -> Tensor:
    left, right = ("batch1", "batch2") if c.get("batch1") is not None else ("mat1", "mat2")
    product = times(f, c[left], c[right])
    product = f.mul(product, f.element(c["alpha"]))
    return f.add(f.mul(c["self"], f.element(c["beta"])), product)


def einsum(f: Arithmetic, c: Call) -> Tensor:
    if len(c["tensors"]) != 2:
        raise NoMeaning("a product of more than two tensors")
    equation: str = c["equation"].replace(" ", "")
    left, right = equation.split("->")[0].split(",")
    kept = equation.split("->")[1] if "->" in equation else ""
    sizes = dict(zip(left, c["tensors"][0].shape, strict=False))
    terms = math.prod(sizes[name] for name in set(left) & set(right) - set(kept) if name in sizes)
    if "." in equation or "->" not in equation or terms > f.longest:
        raise NoMeaning("a sum that is too long, or of axes without a name")
    if set(left) ^ set(right) > set(kept):
        raise NoMeaning("it sums one operand alone")
    return f.reduce(visible(c.run()), terms)


# -- convolutions -----------------------------------------------------------------------------------


def convolution(f: Arithmetic, c: Call) -> Tensor:
    """In pieces of the input channels, each of few enough terms."""
    x, weight, bias, groups = c["input"], c["weight"], c["bias"], int(c["groups"])
    turned = "transpose" in c.name or bool(c.get("transposed"))
    kernel = weight.dim() - 2
    channel = x.dim() - kernel - 1
    inner = weight.shape[0] // groups if turned else weight.shape[1]
    step = max(1, f.longest // math.prod(weight.shape[2:]))
    found: Tensor | None = None
    for start in range(0, inner, step):
        size = min(step, inner - start)
        if size == inner:
            piece, part = x, weight
        else:
            piece = _narrowed(x, channel, groups, start, size)
            part = (
                _narrowed(weight, 0, groups, start, size)
                if turned
                else weight.narrow(1, start, size)
            )
        terms = size * math.prod(weight.shape[2:])
        product = f.reduce(visible(c.run(input=piece, weight=part, bias=None)), terms)
        found = product if found is None else f.add(found, product)
    assert found is not None
    return found if bias is None else f.add(found, bias.reshape(-1, *[1] * kernel))


def _narrowed(x: Tensor, axis: int, groups: int, start: int, size: int) -> Tensor:
    """Some channels of every group."""
    split = x.unflatten(axis, (groups, -1)).narrow(axis + 1, start, size)
    found: Tensor = split.flatten(axis, axis + 1).contiguous()
    return found


# -- pools and interpolations -----------------------------------------------------------------------


def average_pool(f: Arithmetic, c: Call) -> Tensor:
    """Sums over windows, over the number of places that each counts."""
    x, spatial = c["self"], int(c.name[-2])
    lead = x.dim() - spatial
    kernel, padding = sizes_of(c["kernel_size"], spatial), sizes_of(c["padding"], spatial)
    stride = sizes_of(c["stride"] or c["kernel_size"], spatial)
    while spatial < 2:  # torch has no other divisor for pools of one axis
        x, spatial = x.unsqueeze(-2), spatial + 1
        kernel, stride, padding = [1, *kernel], [1, *stride], [0, *padding]
    pool: Any = F.avg_pool2d if spatial == 2 else F.avg_pool3d
    ceil = bool(c["ceil_mode"])

    def windows(part: Tensor) -> Tensor:
        return pool(part, kernel, stride, padding, ceil, True, divisor_override=1)  # type: ignore[no-any-return]

    found = f.reduce(windows(x))
    if c.get("divisor_override") is not None:
        count: Any = int(c["divisor_override"])
    elif not c["count_include_pad"]:
        count = windows(torch.ones_like(x[(0,) * lead]).expand(1, 1, *x.shape[lead:])).long()
    else:
        wide = torch.ones(
            1,
            1,
            *(n + 2 * pad for n, pad in zip(x.shape[lead:], padding, strict=True)),
            dtype=x.dtype,
        )
        at_ends = [k if ceil else 0 for k in kernel]
        wide = F.pad(wide, [n for end in reversed(at_ends) for n in (0, end)])
        counts = pool(wide, kernel, stride, 0, False, True, divisor_override=1)
        count = counts[(0, 0, *(slice(n) for n in found.shape[lead:]))].long()
    if isinstance(count, Tensor):
        count = count.reshape(count.shape[-spatial:])
    found = f.mul(found, f.tally(count))
    return found.squeeze(-2) if c.name == "avg_pool1d" else found


def sizes_of(value: Any, spatial: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * spatial if len(values) == 1 else values


def adaptive_average_pool(f: Arithmetic, c: Call) -> Tensor:
    return separable(f, c, int(c.name[-2]), "output_size")


def interpolation(f: Arithmetic, c: Call) -> Tensor:
    digits = [int(letter) for letter in c.name if letter.isdigit()]
    return separable(f, c, digits[0], "output_size")


def separable(f: Arithmetic, c: Call, spatial: int, sizes: str) -> Tensor:
    """A linear map along each of the last axes: each is found by what torch does to unit vectors."""
    name = "self" if "self" in c.values else "input"
    found: Tensor = c[name]
    shape = list(found.shape)
    wanted = list(c.run(**{name: found.new_zeros(shape)}).shape[-spatial:])
    for axis in range(spatial):
        size = shape[axis - spatial]
        line, target = [2] * spatial, [2] * spatial  # torch interpolates lines of width 1 wrongly
        line[axis], target[axis] = size, wanted[axis]
        units = torch.eye(size, dtype=torch.float64).reshape(
            size, 1, *(size if n == axis else 1 for n in range(spatial))
        )
        changed: dict[str, Any] = {name: units.expand(size, 1, *line).contiguous()}
        if c.get("scale_factors") is not None:
            changed["scale_factors"] = [
                1.0 if n != axis else s for n, s in enumerate(c["scale_factors"])
            ]
        else:
            changed[sizes] = target
        weights = c.run(**changed)[
            (slice(None), 0, *(slice(None) if n == axis else 0 for n in range(spatial)))
        ]
        weights = _exact_weights(f, weights)
        found = times(f, found.movedim(axis - spatial, -1), weights).movedim(-1, axis - spatial)
    return found


def _exact_weights(f: Arithmetic, weights: Tensor) -> Tensor:
    """Weights of averages as rationals: a common denominator makes integers of those of one result."""
    found = []
    for column in weights.unbind(1):
        whole = [bottom for bottom in _denominators(weights.shape) if _is_whole(column, bottom)]
        if not whole:
            raise NoMeaning("weights that are not simple rationals")
        found.append(f.mul(f.element((column * whole[0]).round().long()), f.tally(whole[0])))
    return torch.stack(found, 1)


def _denominators(shape: torch.Size) -> Iterator[int]:
    yield from range(1, 2 * max(shape) + 1)
    for size in (*shape, *(size - 1 for size in shape)):  # cubic ones
        yield from (factor * size**3 for factor in (1, 4, 8, 32))


def _is_whole(weights: Tensor, bottom: int) -> bool:
    scaled = weights * bottom
    return bottom > 0 and bool(((scaled - scaled.round()).abs() < _NEAR * bottom**0.5).all())
