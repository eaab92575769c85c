"""Norms written out by hand, recognised by what their values are and not by the ops that spell them.

    x - mean(x)                                    mean, sum / n, or the mean of var_mean
    v = mean((x - mean(x))^2)                      also var, std^2, mean(x^2) - mean(x)^2
    (x - mean(x)) (v + eps)^(-1/2)                 = layer_norm(x)
    x (mean(x^2) + eps)^(-1/2)                     = rms_norm(x)
    group_norm(x) of one group, nothing but channels  = layer_norm(x)

The powers multiply: sqrt, rsqrt, reciprocal and pow are all one rule. Eps outside the root, the unbiased
variance, and a variance that divides an uncentred x are other functions, and stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, is_symbolic, op_name, shape_of
from normfold.ops.table import Kind, is_copy, row_of

aten = torch.ops.aten
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_LENGTHS = {"linalg_vector_norm", "norm", "var", "std", "var_mean", "std_mean"}
_REDUCTIONS = {"mean", "sum", "amax"}
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}


@dataclass(frozen=True)
class HandWritten:
    """A norm without affine: ``kind`` of ``data`` over ``dims``."""

    kind: str
    data: fx.Node
    dims: tuple[int, ...]
    eps: float


@dataclass(frozen=True)
class _Mean:
    of: fx.Node
    dims: tuple[int, ...]
    keep: bool


@dataclass(frozen=True)
class _Deviation:
    """``sign * (of - mean(of))`` over ``dims``; ``of`` itself where there are none."""

    of: fx.Node
    dims: tuple[int, ...] = ()
    sign: int = 1


@dataclass(frozen=True)
class _Spread:
    """``(mean(of^2) + eps)^power`` over ``dims``: a variance if ``of`` is centred there, else a mean square."""

    of: _Deviation
    dims: tuple[int, ...]
    keep: bool
    eps: float | None = None
    power: float = 1.0


def recognise(node: fx.Node) -> HandWritten | None:
    """The norm whose result ``node`` is, or None. Reads only."""
    name = op_name(node)
    if name not in ("mul", "div") or node.kwargs.get("rounding_mode"):
        return None
    value, divisor = node.args[:2]
    pairs = [(value, divisor)] if name == "div" else [(value, divisor), (divisor, value)]
    for value, divisor in pairs:
        if not isinstance(value, fx.Node) or not isinstance(divisor, fx.Node):
            continue
        spread = _spread(divisor)
        if spread is None or spread.eps is None or not spread.keep:
            continue
        if spread.power != (0.5 if name == "div" else -0.5) or _deviation(value) != spread.of:
            continue
        centred = spread.of.dims == spread.dims
        data = bare(value).args[0] if centred else value
        assert isinstance(data, fx.Node)
        kind = "layer-norm" if centred else "rms-norm"
        if _placeable(data, node, spread.dims):
            return HandWritten(kind, data, spread.dims, spread.eps)
    return None


def own_statistic(node: fx.Node) -> fx.Node | None:
    """The length or deviation of a value that ``node`` divides it by, in a norm of none of the known forms.

    Between the two there are functions without weights alone: what a layer makes of a statistic is a gate.
    """
    if op_name(node) not in ("mul", "div") or len(node.all_input_nodes) != 2:
        return None
    pair = node.all_input_nodes
    if any(is_static(item) for item in pair):
        return None
    for value, factor in (pair, pair[::-1]):
        if op_name(node) == "div" and value is not node.args[0]:
            continue
        own = {bare(value), value}
        if row_of(value).kind in (Kind.ADD, Kind.PRODUCT):  # a deviation, a part of an activation
            own.update(bare(item) for item in value.all_input_nodes if not is_static(item))
        found = _statistic(factor, own)
        if found is not None:
            return found
    return None


def _statistic(node: fx.Node, own: set[fx.Node]) -> fx.Node | None:
    """The reduction by which ``node`` measures one of the values ``own``."""
    seen, stack, reached = {node}, [node], False
    while stack:
        current = stack.pop()
        if current in own:
            reached = True
            continue
        if current.op != "call_function" or row_of(current).kind in (Kind.LINEAR, Kind.DOT):
            continue
        fresh = [item for item in current.all_input_nodes if item not in seen]
        seen.update(fresh)
        stack += fresh
    lengths = [item for item in seen if op_name(item) in _LENGTHS]
    if any(_squared(item) is not None or op_name(item) == "abs" for item in seen - own):
        lengths += [item for item in seen if op_name(item) in _REDUCTIONS]
    return min(lengths) if reached and lengths else None


def one_group(node: fx.Node) -> HandWritten | None:
    """The layer norm that a group norm of one group is, where every axis behind the channels has size 1."""
    if op_name(node) != "group_norm" or argument(node, "num_groups") != 1:
        return None
    affine = (argument(node, "weight"), argument(node, "bias"))
    if not all(part is None or is_static(part) for part in affine):
        return None
    data = node.args[0]
    assert isinstance(data, fx.Node)
    _, channels, *others = data.meta["val"].shape
    if is_symbolic(channels) or any(is_symbolic(size) or size != 1 for size in others):
        return None
    return HandWritten("layer-norm", data, (1,), float(argument(node, "eps")))


def bare(node: fx.Node) -> fx.Node:
    """What ``node`` holds, behind ops that change nothing and casts that lose nothing."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        source, casts = node.args[0], row_of(node).move.casts
        widened = casts and _widens(source, node)
        if not is_copy(node) and not widened and not adds_nothing(node):
            break
        node = source
    return node


def adds_nothing(node: fx.Node) -> bool:
    """x + 0, x - 0, x * 1, x / 1 with a number, where the dtype stays."""
    kind = row_of(node).kind
    if kind not in (Kind.ADD, Kind.PRODUCT) or len(node.args) < 2:
        return False
    source, number = node.args[:2]
    if not isinstance(source, fx.Node):
        return False
    neutral = 0 if kind is Kind.ADD else 1
    plain = (
        isinstance(number, (int, float))
        and number == neutral
        and "rounding_mode" not in node.kwargs
    )
    return plain and source.meta["val"].dtype == node.meta["val"].dtype


def _placeable(data: fx.Node, node: fx.Node, dims: tuple[int, ...]) -> bool:
    """True if one op can normalise ``dims``: sizes known, and the last axes or a single one behind the first."""
    value, rank = data.meta["val"], len(shape_of(node))
    if shape_of(data) != shape_of(node) or any(is_symbolic(value.shape[dim]) for dim in dims):
        return False
    last = dims == tuple(range(rank - len(dims), rank))
    batch = dims[0] == 0 and rank > 1  # statistics over samples: no layer norm
    return not batch and (last or len(dims) == 1)


def _widens(source: fx.Node, target: fx.Node) -> bool:
    """True if every value of ``source`` fits the dtype of ``target``, on the same device."""
    narrow, wide = source.meta["val"], target.meta["val"]
    floats = {narrow.dtype, wide.dtype} <= _FLOATS
    return (
        floats
        and narrow.device == wide.device
        and torch.promote_types(narrow.dtype, wide.dtype) == wide.dtype
    )


def _reduction(node: fx.Node) -> _Mean | None:
    """Source and axes of a mean, sum, var, std or var_mean."""
    source, dims = node.args[0], argument(node, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(source, fx.Node) or not dims:
        return None
    result = node.meta["val"]
    if isinstance(result, torch.Tensor) and not _widens(source, node):
        return None
    rank = len(shape_of(source))
    axes = tuple(sorted(dim % rank for dim in dims))
    return _Mean(bare(source), axes, bool(argument(node, "keepdim")))


def _mean(node: fx.Node) -> _Mean | None:
    node = bare(node)
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    match op_name(node):
        case "mean":
            return _reduction(node)
        case "getitem" if op_name(source) in ("var_mean", "std_mean") and node.args[1] == 1:
            return _reduction(source)
        case "unsqueeze":
            found = _mean(source)
            return replace(found, keep=True) if found and _restores(node, found) else None
        case "div" | "mul" if op_name(bare(source)) == "sum" and not node.kwargs:
            found = _reduction(bare(source))
            if found is None or is_symbolic(math.prod(_sizes(found))):
                return None
            count = int(math.prod(_sizes(found)))
            return (
                found if node.args[1] == (count if op_name(node) == "div" else 1 / count) else None
            )
    return None


def _sizes(found: _Mean) -> list[Any]:
    return [found.of.meta["val"].shape[dim] for dim in found.dims]


def _restores(unsqueeze: fx.Node, found: _Mean | _Spread) -> bool:
    """True if an unsqueeze puts back the one axis that a reduction dropped."""
    dim = int(argument(unsqueeze, "dim")) % len(shape_of(unsqueeze))
    return not found.keep and found.dims == (dim,)


def _deviation(node: fx.Node) -> _Deviation:
    node = bare(node)
    if op_name(node) == "sub" and node.kwargs.get("alpha", 1) == 1:
        left, right = node.args[:2]
        for sign, value, mean in ((1, left, right), (-1, right, left)):
            if isinstance(value, fx.Node) and isinstance(mean, fx.Node):
                found = _mean(mean)
                if found is not None and found.keep and found.of is bare(value):
                    return _Deviation(found.of, found.dims, sign)
    return _Deviation(node)


def _centred(node: fx.Node, dims: tuple[int, ...]) -> _Deviation:
    """What a variance over ``dims`` squares: a value that is already centred there is not centred again."""
    found = _deviation(node)
    return replace(found, sign=1) if found.dims == dims else _Deviation(node, dims)


def _squared(node: fx.Node) -> fx.Node | None:
    """The value whose square ``node`` is."""
    node = bare(node)
    match op_name(node), *node.args[:2]:
        case ("pow", fx.Node() as source, 2 | 2.0) | ("square", fx.Node() as source):
            return bare(source)
        case ("mul", fx.Node() as left, fx.Node() as right):
            return bare(left) if _deviation(left) == _deviation(right) else None
    return None


def _spread(node: fx.Node) -> _Spread | None:
    node = bare(node)
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, name = node.args[0], op_name(node)
    number: Any = node.args[1] if len(node.args) > 1 else None
    alpha: Any = node.kwargs.get("alpha", 1)
    if name in ("var", "std"):
        return _variance(node)
    if name == "getitem":
        measured = op_name(source) in ("var_mean", "std_mean") and number == 0
        return _variance(source) if measured else None
    if name in _POWERS or (name == "pow" and isinstance(number, (int, float))):
        found, power = _spread(source), float(_POWERS.get(name, number))
        return replace(found, power=found.power * power) if found else None
    if name == "add" and isinstance(number, (int, float)):
        return _with_eps(_spread(source), float(number * alpha))
    if name in ("clamp", "clamp_min") and _keeps_positive(node):
        return _spread(source)
    if name == "unsqueeze":
        found = _spread(source)
        return replace(found, keep=True) if found and _restores(node, found) else None
    if name == "sub" and isinstance(number, fx.Node) and alpha == 1:
        return _difference(source, number)
    return _mean_square(node)


def _with_eps(found: _Spread | None, eps: float) -> _Spread | None:
    inside = found is not None and found.eps is None and found.power == 1 and 0 < eps < math.inf
    return replace(found, eps=eps) if found and inside else None


def _keeps_positive(clamp: fx.Node) -> bool:
    """True for clamp(x, min <= 0): nothing happens to a variance, whose rounding it guards."""
    low = argument(clamp, "min")
    return isinstance(low, (int, float)) and low <= 0 and argument(clamp, "max") is None


def _variance(node: fx.Node) -> _Spread | None:
    """Biased variance of var and var_mean, its root of std and std_mean."""
    found = _reduction(node)
    unbiased, correction = argument(node, "unbiased", None), argument(node, "correction", None)
    names = {spec.name for spec in node.target._schema.arguments}  # type: ignore[union-attr]
    biased = unbiased is False if "unbiased" in names else correction == 0
    if found is None or not biased:
        return None
    power = 0.5 if op_name(node).startswith("std") else 1.0
    return _Spread(_centred(found.of, found.dims), found.dims, found.keep, power=power)


def _mean_square(node: fx.Node) -> _Spread | None:
    mean = _mean(node)
    squared = _squared(mean.of) if mean else None
    if mean is None or squared is None:
        return None
    return _Spread(replace(_deviation(squared), sign=1), mean.dims, mean.keep)


def _difference(left: fx.Node, right: fx.Node) -> _Spread | None:
    """mean(x^2) - mean(x)^2."""
    square, root = _mean_square(left), _squared(right)
    mean = _mean(root) if root else None
    if square is None or mean is None or square.of.dims:
        return None
    same = (mean.of, mean.dims, mean.keep) == (square.of.of, square.dims, square.keep)
    return replace(square, of=_Deviation(mean.of, mean.dims)) if same else None
