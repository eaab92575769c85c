"""Layouts: which element of a tensor belongs to which feature.

A layout is an int64 tensor of feature ids that broadcasts against the tensor: an axis along which the
feature does not change has size 1, and -1 marks elements that belong to no feature of interest. NCHW is
``ids.shape == (1, C, 1, 1)``; attention heads are ``(1, heads, 1, head_dim)``. How an op moves elements is
found by running the op itself on index tensors, so no op needs shape code of its own.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.expressions import evaluate, is_static
from normfold.ir.graph import concrete, op_name, shape_of
from normfold.ops.linear import zero_pad_of
from normfold.ops.reads import operands, producer, uses
from normfold.ops.table import row_of

NONE = -1


class LayoutError(Exception):
    """An op cannot carry a layout: it mixes features, or depends on data."""


def channel(rank: int, dim: int, size: int) -> Tensor:
    """Layout of ``size`` features along axis ``dim``."""
    shape = [1] * rank
    shape[dim] = size
    return torch.arange(size).reshape(shape)


def compress(ids: Tensor) -> Tensor:
    """Give size 1 to every axis along which the ids do not change."""
    for dim, size in enumerate(ids.shape):
        if size > 1 and bool((ids == ids.narrow(dim, 0, 1)).all()):
            ids = ids.narrow(dim, 0, 1)
    return ids.contiguous()


def axis_of(ids: Tensor) -> int | None:
    """The single axis along which ids vary; None if they vary along several (or none)."""
    axes = [dim for dim, size in enumerate(ids.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def along(ids: Tensor, dim: int, size: int) -> Tensor | None:
    """Ids of each position along ``dim``, shape (size,); None if they also vary along another axis."""
    dim %= ids.dim()
    if any(extent > 1 for axis, extent in enumerate(ids.shape) if axis != dim):
        return None
    return ids.reshape(-1).expand(size)


def align(ids: Tensor, rank: int) -> Tensor:
    """Broadcast-align to another rank: leading axes of size 1 are added or dropped."""
    while ids.dim() < rank:
        ids = ids.unsqueeze(0)
    while ids.dim() > rank and ids.shape[0] == 1:
        ids = ids.squeeze(0)
    if ids.dim() != rank:
        raise LayoutError("ranks differ")
    return ids


def for_operand(ids: Tensor, operand: fx.Node) -> Tensor:
    """Layout of one operand of an elementwise op whose result has layout ``ids`` (undo broadcasting)."""
    shape = shape_of(operand)
    ids = align(ids, max(len(shape), ids.dim()))
    while ids.dim() > len(shape):
        if ids.shape[0] != 1:
            raise LayoutError("features vary along a broadcast axis")
        ids = ids.squeeze(0)
    if any(extent not in (1, size) for extent, size in zip(ids.shape, shape, strict=True)):
        raise LayoutError("features vary along a broadcast axis")
    return ids


def push(node: fx.Node, operand: fx.Node, ids: Tensor) -> Tensor:
    """Layout of a MOVE op's result when ``operand`` has layout ``ids`` and other operands have none."""
    kept = _same_axes(node, ids)
    if kept is not None:
        return kept
    alone = kept_axes(producer(node), ids.dim())
    parts = {}
    for part in operands(node):
        shape = shape_of(part)
        if alone is not None:
            shape = tuple(
                size if axis not in alone or ids.shape[axis] > 1 else 1
                for axis, size in enumerate(shape)
            )
        parts[part] = ids.expand(shape) if part is operand else torch.full(shape, NONE)
    return compress(_run(node, parts))


def pull(node: fx.Node, ids: Tensor, spread: bool = True) -> list[tuple[fx.Node, Tensor]]:
    """Layouts of a MOVE op's operands that give its result the layout ``ids``.

    ``spread`` gives elements that nothing reads the feature of their line, where it has just one.

    Raises:
        LayoutError: an element reaches several places that want different features, or a pad value is
            asked to take part in a feature (a zero pad may, where only a scale is moved: see `push`).
    """
    parts = operands(node)
    if len(parts) == 1 and (kept := _same_axes_back(node, parts[0], ids)) is not None:
        return [(parts[0], kept)]
    if len(set(parts)) != len(parts):
        raise LayoutError("one tensor is moved to several places")
    shapes = [_needed_shape(node, part, ids) for part in parts]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    sources, start = {}, 0
    for part, shape, size in zip(parts, shapes, sizes, strict=True):
        sources[part] = torch.arange(start, start + size).reshape(shape)
        start += size
    origin = _run(node, sources)
    wanted = ids.expand(origin.shape)
    inside = origin >= 0
    found = torch.full((start,), NONE)
    found[origin[inside]] = wanted[inside]
    reached = torch.zeros(start, dtype=torch.bool)
    reached[origin[inside]] = True
    if not bool((found[origin.clamp_min(0)][inside] == wanted[inside]).all()):
        raise LayoutError("one element is moved to places with different features")
    result, start = [], 0
    for part, shape, size in zip(parts, shapes, sizes, strict=True):
        ids = found[start : start + size].reshape(shape)
        if spread and len(uses(part)) == 1:
            ids = _spread(ids, ~reached[start : start + size].reshape(shape))
        result.append((part, compress(ids)))
        start += size
    return result


def _spread(ids: Tensor, unread: Tensor) -> Tensor:
    """Elements that nothing reads may take part in any feature: that of their line, if it has just one."""
    for dim in range(ids.dim()):
        others = [axis for axis in range(ids.dim()) if axis != dim]
        line = ids.amax(others, keepdim=True) if others else ids
        if bool(((ids == line) | unread).all()):
            return line
    return ids


def _needed_shape(node: fx.Node, part: fx.Node, ids: Tensor) -> tuple[int, ...]:
    """Sizes that a run needs to pull ``ids`` back to ``part``: 1 on axes that it treats all alike."""
    shape = shape_of(part)
    kept = kept_axes(producer(node), len(shape))
    if kept is None:
        return shape
    return tuple(
        size if axis not in kept or ids.shape[kept[axis]] > 1 else 1
        for axis, size in enumerate(shape)
    )


def kept_axes(op: fx.Node, rank: int) -> dict[int, int] | None:
    """Axes of its operand that a movement leaves alone, with their places in the result; None if not known."""
    return row_of(op).move.kept(op, rank)


def beside(node: fx.Node, ids: Tensor) -> Tensor | None:
    """Layout of a MOVE op's result, where the op leaves the axes alone along which ``ids`` vary; else None.

    What else it moves may depend on data.
    """
    kept = kept_axes(producer(node), ids.dim())
    if kept is None or any(size > 1 and axis not in kept for axis, size in enumerate(ids.shape)):
        return None
    sizes = [1] * len(shape_of(node))
    for axis, place in kept.items():
        sizes[place] = ids.shape[axis]
    return ids.reshape(sizes)


def in_front(node: fx.Node, source: fx.Node, ids: Tensor) -> Tensor | None:
    """The layout of ``source`` for which `beside` gives ``ids``, or None."""
    sizes = [1] * len(shape_of(source))
    kept = kept_axes(producer(node), len(sizes))
    if kept is None:
        return None
    places = set(kept.values())
    if any(size > 1 and place not in places for place, size in enumerate(ids.shape)):
        return None
    for axis, place in kept.items():
        sizes[axis] = ids.shape[place]
    return ids.reshape(sizes)


def axis_before(node: fx.Node, axis: int) -> int | None:
    """The axis of its operand that an op which only orders axes makes ``axis``; None for other ops."""
    match row_of(node).move.order:
        case "places":
            return axis
        case "axes":
            return _axis_order(node, len(shape_of(node)))[axis]
    return None


def _axis_order(node: fx.Node, rank: int) -> list[int]:
    """Of each axis of the result of an op that only orders axes: the axis of its operand."""
    numbered = torch.empty(tuple(range(rank)), device="meta")
    return list(node.target(numbered, *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]


def _same_axes(node: fx.Node, ids: Tensor) -> Tensor | None:
    """Fast path: ops that keep, permute, split, merge or broadcast axes need no run."""
    if op_name(node) == "roll" and (past := beside(node, ids)) is not None:
        return past
    match row_of(node).move.order:
        case "places":
            return ids
        case "axes":
            return ids.permute(_axis_order(node, ids.dim()))
        case "repeated":
            return align(ids, len(shape_of(node)))
        case "reshaped":
            return _regroup(ids, shape_of(operands(node)[0]), shape_of(node))
    return None


def _same_axes_back(node: fx.Node, source: fx.Node, ids: Tensor) -> Tensor | None:
    match row_of(node).move.order:
        case "places":
            return ids
        case "axes":
            order = _axis_order(node, ids.dim())
            return ids.permute([order.index(dim) for dim in range(len(order))])
        case "repeated":
            return for_operand(ids, source)
        case "reshaped":
            return _regroup(ids, shape_of(node), shape_of(source))
    return None


def _regroup(ids: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor | None:
    """Layout behind a reshape, axis by axis of the common refinement of both shapes.

    (heads * width) -> (heads, width) refines to the latter: ids that repeat for every head then have size 1
    along the heads. None if the shapes have no common refinement, such as (4, 6) and (6, 4).
    """
    borders = sorted({*_borders(before), *_borders(after)})
    factors = list(pairwise(borders))
    if 0 in borders or any(high % low for low, high in factors):
        return None
    split: list[int] = []
    for axis, (low, high) in enumerate(_spans(before)):
        inner = [b // a for a, b in reversed(factors) if low <= a and b <= high]
        split += inner if ids.shape[axis] > 1 else [1] * len(inner)
    ids = compress(ids.reshape(split))
    full, merged, start = [], [], 0
    for low, high in _spans(after):
        inner = [b // a for a, b in reversed(factors) if low <= a and b <= high]
        varies = any(extent > 1 for extent in ids.shape[start : start + len(inner)])
        full += inner if varies else [1] * len(inner)
        merged.append(high // low if varies else 1)
        start += len(inner)
    return ids.expand(full).reshape(merged)


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(elements to the right of each axis, the same times its size)."""
    return [(low, high) for high, low in pairwise(_borders(shape))]


def _borders(shape: tuple[int, ...]) -> list[int]:
    """Number of elements to the right of every gap between axes, from left to right."""
    return [torch.Size(shape[axis:]).numel() for axis in range(len(shape) + 1)]


def _run(node: fx.Node, tensors: dict[fx.Node, Tensor]) -> Tensor:
    """Run a MOVE op on index tensors, at the sizes of the example inputs; pads become `NONE`."""
    op = producer(node)

    def resolve(source: fx.Node) -> Any:
        if source in tensors:
            return tensors[source]
        value = source.meta.get("val")
        if not isinstance(value, Tensor):
            return concrete(value)
        if is_static(source) and not value.is_floating_point():
            module = source.graph.owning_module
            assert module is not None
            return evaluate(module, source)
        if row_of(op).lends:
            return torch.empty(shape_of(source), dtype=torch.int64)
        raise LayoutError(f"`{op.name}` moves elements by run-time data")

    resolved: Any = fx.map_arg((op.args, op.kwargs), resolve)
    args, kwargs = resolved
    args = [concrete(arg) if isinstance(arg, torch.SymInt) else arg for arg in args]
    name = op_name(op)
    result: Any
    if name in ("pad", "constant_pad_nd"):
        if zero_pad_of(op) is None and (name == "constant_pad_nd" or op.args[2:3] == ("constant",)):
            raise LayoutError("a constant that is not zero is padded")
        mode = op.args[2] if name == "pad" and len(op.args) > 2 else "constant"
        result = _pad(args[0], args[1], str(mode))
    elif name in ("im2col", "pixel_shuffle", "pixel_unshuffle") or "_pad" in name:
        # these have no integer kernels; float64 holds indices exactly
        shifted = [arg.double() + 1 if isinstance(arg, Tensor) else arg for arg in args]
        result = op.target(*shifted, **kwargs).long() - 1  # type: ignore[operator]
    elif row_of(op).move.order == "places":
        result = args[0]
    elif name in ("view", "_unsafe_view"):  # an expanded index tensor has no such view
        result = args[0].reshape(args[1])
    else:
        result = op.target(*args, **kwargs)  # type: ignore[operator]
    if node is not op:
        result = result[node.args[1]]
    assert isinstance(result, Tensor)
    return result


def _pad(ids: Tensor, pad: list[int], mode: str) -> Tensor:
    if mode == "constant":
        return torch.nn.functional.pad(ids, pad, value=NONE)
    return torch.nn.functional.pad(ids.double(), pad, mode=mode).long()
