"""Norms, softmax and attention in exact arithmetic.

Norms are computed as what they are, so that a LayerNorm is not assumed to be an RMSNorm of something. A softmax
is an unknown square of what an element has above the mean of its row, over the sum of the row: a shift of the row
changes nothing, the row sums to one, what is hidden is zero, and nothing else is known of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normfold.ops.arithmetic import HIDDEN, Arithmetic, Call, NoMeaning, axes, number
from normfold.ops.exact_sums import average, times


def _centred(f: Arithmetic, x: Tensor, dims: list[int]) -> Tensor:
    return f.sub(x, average(f, x, dims))


def _power(f: Arithmetic, x: Tensor, dims: list[int], eps: float) -> Tensor:
    """1 / sqrt(mean of squares + eps)."""
    mean = average(f, f.mul(x, x), dims)
    return f.inverse(f.root(f.add(mean, f.element(eps))))


def _affine(f: Arithmetic, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = f.mul(x, weight)
    return x if bias is None else f.add(x, bias)


def _eps(c: Call) -> float:
    """As given, or what torch takes for the type."""
    if c["eps"] is not None:
        return float(c["eps"])
    made = c.node.meta["val"]
    return torch.finfo((made[0] if isinstance(made, (list, tuple)) else made).dtype).eps


def _last(c: Call) -> list[int]:
    rank = len(c["normalized_shape"])
    return list(range(-rank, 0))


def layer_norm(f: Arithmetic, c: Call) -> Any:
    x, dims = c["input"], _last(c)
    mean, centred = average(f, x, dims), _centred(f, x, dims)
    scale = _power(f, centred, dims, _eps(c))
    result = _affine(f, f.mul(centred, scale), c["weight"], c["bias"])
    return (result, mean, scale) if c.name.startswith("native") else result


def rms_norm(f: Arithmetic, c: Call) -> Any:
    x, dims = c["input"], _last(c)
    scale = _power(f, x, dims, _eps(c))
    result = _affine(f, f.mul(x, scale), c["weight"], None)
    return (result, scale) if c.name.startswith("_fused") else result


def _wide(x: Tensor | None, rank: int) -> Tensor | None:
    """One number per channel of a tensor with channels along axis 1."""
    return None if x is None else x.reshape(-1, *[1] * (rank - 2))


def group_norm(f: Arithmetic, c: Call) -> Any:
    x = c["input"]
    groups = int(c.get("num_groups") or c["group"])
    split = x.reshape(x.shape[0], groups, -1)
    centred = _centred(f, split, [2])
    scale = _power(f, centred, [2], _eps(c))
    weight, bias = _wide(c["weight"], x.dim()), _wide(c["bias"], x.dim())
    result = _affine(f, f.mul(centred, scale).reshape(x.shape), weight, bias)
    if not c.name.startswith("native"):
        return result
    return result, average(f, split, [2], keep=False), scale.squeeze(2)


def instance_norm(f: Arithmetic, c: Call) -> Tensor:
    if not c["use_input_stats"]:
        return _frozen(f, c)
    x = c["input"]
    dims = list(range(2, x.dim()))
    centred = _centred(f, x, dims)
    result = f.mul(centred, _power(f, centred, dims, _eps(c)))
    return _affine(f, result, _wide(c["weight"], x.dim()), _wide(c["bias"], x.dim()))


def batch_norm(f: Arithmetic, c: Call) -> Any:
    x = c["input"]
    if c.get("training") or c.get("train") or c.get("running_mean") is None:
        dims = [dim for dim in range(x.dim()) if dim != 1]
        centred = _centred(f, x, dims)
        result = f.mul(centred, _power(f, centred, dims, _eps(c)))
        result = _affine(f, result, _wide(c["weight"], x.dim()), _wide(c["bias"], x.dim()))
    else:
        result = _frozen(f, c)
    if not isinstance(c.node.meta["val"], (list, tuple)):
        return result
    return result, *[result.new_zeros(0)] * (len(c.node.meta["val"]) - 1)


def _frozen(f: Arithmetic, c: Call) -> Tensor:
    """By running statistics: one scale and one shift for each channel."""
    x = c["input"]
    rank = max(x.dim(), 2)
    mean, variance = _wide(c["running_mean"], rank), _wide(c["running_var"], rank)
    assert mean is not None
    assert variance is not None
    scale = f.inverse(f.root(f.add(variance, f.element(_eps(c)))))
    weight, bias = _wide(c["weight"], rank), _wide(c["bias"], rank)
    scale = scale if weight is None else f.mul(scale, weight)
    shift = f.mul(mean, scale)
    return f.add(f.mul(x, scale), f.sub(number(f, 0) if bias is None else bias, shift))


def variance(f: Arithmetic, c: Call) -> Tensor:
    x = c["self"]
    if isinstance(c.node.meta["val"], (list, tuple)):
        raise NoMeaning("it gives the mean as well")
    dims = axes(c.get("dim"), x.dim())
    correction = c["correction"] if "correction" in c.values else int(c.get("unbiased", True))
    count = math.prod(x.shape[dim] for dim in dims) - int(1 if correction is None else correction)
    centred = _centred(f, x, dims)
    squares = f.reduce(f.mul(centred, centred).sum(dims, bool(c.get("keepdim"))))
    found = f.mul(squares, f.tally(count))
    return f.root(found) if c.name.startswith("std") else found


def vector_norm(f: Arithmetic, c: Call) -> Tensor:
    x = c["self"]
    order = c.get("ord", c.get("p"))
    dims, keep = axes(c.get("dim"), x.dim()), bool(c.get("keepdim"))
    if order in (None, 2, 2.0):
        return f.root(f.reduce(f.mul(x, x).sum(dims, keep)))
    if order in (1, 1.0):
        return f.reduce(f.mul(x, f.element(f.sign(x))).sum(dims, keep))
    raise NoMeaning(f"a norm of order {order}")


def weight_norm(f: Arithmetic, c: Call) -> Tensor:
    """A direction times a length, one for each index of an axis."""
    v, axis = c["v"], int(c["dim"]) % c["v"].dim()
    dims = [dim for dim in range(v.dim()) if dim != axis]
    size = f.root(f.reduce(f.mul(v, v).sum(dims, True)))
    return f.mul(v, f.mul(c["g"], f.inverse(size)))


# -- attention --------------------------------------------------------------------------------------


def _above_mean(f: Arithmetic, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What elements have above the mean of what is visible in their row; and what is visible."""
    seen = x != HIDDEN
    shown = torch.where(seen, x, 0.0)
    mean = f.mul(f.reduce(shown.sum(dim, keepdim=True)), _tally(f, seen.sum(dim, keepdim=True)))
    return f.sub(shown, mean), seen


def _tally(f: Arithmetic, count: Tensor) -> Tensor:
    return f.tally(count.clamp_min(1))


def weights_of(f: Arithmetic, x: Tensor, dim: int) -> Tensor:
    """The softmax of a tensor along an axis."""
    above, seen = _above_mean(f, x, dim)
    found = torch.where(seen, f.scramble(above, "softmax", positive=True), 0.0)
    total = f.reduce(found.sum(dim, keepdim=True))
    none = ~seen.any(dim, keepdim=True)
    return f.mul(found, f.inverse(torch.where(none, 1.0, total)))


def softmax(f: Arithmetic, c: Call) -> Tensor:
    return weights_of(f, c["self"], int(c["dim"]))


def log_softmax(f: Arithmetic, c: Call) -> Tensor:
    above, seen = _above_mean(f, c["self"], int(c["dim"]))
    return torch.where(seen, f.scramble(above, c.name.strip("_")), HIDDEN)


def logsumexp(f: Arithmetic, c: Call) -> Tensor:
    """x_i - log softmax(x)_i, for the mean of x."""
    x = c["self"]
    dims = axes(c["dim"], x.dim())
    if len(dims) != 1:
        raise NoMeaning("over several axes")
    above, seen = _above_mean(f, x, dims[0])
    rest = torch.where(seen, f.scramble(above, "exp of what is above the mean"), 0.0)
    rest = f.scramble(f.reduce(rest.sum(dims, keepdim=True)), "log of a sum")
    mean = f.sub(torch.where(seen, x, 0.0), above).amax(dims, keepdim=True)
    found = f.add(mean, rest)
    return found if c.get("keepdim") else found.squeeze(dims[0])


def attention(f: Arithmetic, c: Call) -> Tensor:
    query, key, value, mask = c["query"], c["key"], c["value"], c["attn_mask"]
    if c["dropout_p"]:
        raise NoMeaning("it draws random numbers")
    if c.get("enable_gqa"):
        shared = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(shared, -3) for x in (key, value))
    scale = c.get("scale")
    size = query.shape[-1]
    factor = f.inverse(f.root(number(f, size))) if scale is None else f.element(scale)
    scores = f.mul(times(f, query, key.transpose(-2, -1)), factor)
    if c["is_causal"]:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = torch.where(seen, scores, HIDDEN)
    if mask is not None and not mask.is_floating_point():
        scores = torch.where(mask, scores, HIDDEN)
    elif mask is not None:
        scores = f.add(scores, mask)
    return times(f, weights_of(f, scores, -1), value)
