"""Assignments to slices, as capture leaves them: scatters of copies of expanded constants into slices of slices.

A border of one number per channel is a padding: whether it is written around data, or data into a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from normfold.ir.expressions import evaluate, is_static
from normfold.ir.graph import argument, is_symbolic, op_name, shape_of
from normfold.ops.selection import takes_all

_END = 2**62  # what `x[1:]` is captured as
_SOURCES = {"fill": "value", "copy": "src", "expand": "self", "clone": "self"}
_SOURCES |= {"full": "fill_value", "new_full": "fill_value", "full_like": "fill_value"}
_FILLED = {"zero": 0.0, "zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0}
_FILLED |= {"ones": 1.0, "new_ones": 1.0, "ones_like": 1.0}
_RESHAPES = ("view", "reshape", "_unsafe_view", "expand", "squeeze", "unsqueeze", "clone")


@dataclass(frozen=True)
class Write:
    """``base`` with ``value`` at ``start:end`` of the axis ``dim``; ``end`` is None for all that follows.

    ``value`` is a number, or a tensor that is expanded to what it overwrites, which lacks the axis if ``single``.
    """

    base: fx.Node
    value: fx.Node | float
    dim: int
    start: int
    end: int | None
    single: bool


@dataclass(frozen=True)
class Border:
    """``data``, of which ``cropped`` is taken off, with ``value`` around it.

    ``widths`` and ``cropped`` hold the number of elements at both ends of an axis. A value that is no number has
    an entry for each index of ``channel``; a number has None where every axis has a border or a free size.
    """

    data: fx.Node
    value: fx.Node | float
    channel: int | None
    widths: dict[int, tuple[int, int]]
    cropped: dict[int, tuple[int, int]]


def replaced_by(node: fx.Node) -> fx.Node | None:
    """What a write that overwrites everything gives: a tensor of the same shape and type."""
    if op_name(node) not in ("slice_scatter", "copy"):
        return None
    source = argument(node, "src")
    value, own = source.meta["val"], node.meta["val"]
    same = value.dtype == own.dtype and len(value.shape) == len(own.shape)
    return source if same and [str(s) for s in value.shape] == [str(s) for s in own.shape] else None


def write_of(node: fx.Node) -> Write | None:
    """The write to one slice, or one index, that a node is, through those that overwrite everything."""
    while (source := replaced_by(node)) is not None:
        node = source
    name = op_name(node)
    if name not in ("slice_scatter", "select_scatter") or argument(node, "step", 1) != 1:
        return None
    rank = len(shape_of(node))
    start, end = argument(node, "start") or 0, argument(node, "end")
    single = name == "select_scatter"
    if single:
        start = argument(node, "index")
        end = start + 1 if isinstance(start, int) and start != -1 else None
    if not isinstance(start, int) or not isinstance(end, int | None):
        return None
    end = None if end is not None and end >= _END else end
    value = _value(argument(node, "src"), node)
    dim = int(argument(node, "dim", 0)) % rank
    return Write(_whole(node.args[0]), value, dim, start, end, single)


def _whole(node: Any) -> fx.Node:
    while takes_all(node):
        node = node.args[0]
    return node  # type: ignore[no-any-return]


def _value(node: fx.Node, writer: fx.Node) -> fx.Node | float:
    """What was expanded, or filled in."""
    dtype = writer.meta["val"].dtype
    while True:
        name = op_name(node)
        if name in _FILLED:
            return _FILLED[name]
        source = argument(node, _SOURCES[name]) if name in _SOURCES else None
        if isinstance(source, bool | int | float):
            return float(source)
        if not isinstance(source, fx.Node) or getattr(source.meta["val"], "dtype", None) != dtype:
            return node
        node = source


def border_of(node: fx.Node, module: nn.Module) -> Border | None:
    """The border that the last of a chain of writes completes.

    All write the same constant from an end of an axis on, and one of several entries along an axis without border;
    or all write data into a constant.
    """
    if write_of(node) is None or any(_goes_on(user, node) for user in node.users):
        return None
    if (border := _around(node, module)) is not None:
        return border
    widths: dict[int, tuple[int, int]] = {}
    values: list[Write] = []
    data = node
    while (write := write_of(data)) is not None:
        ends = _ends(write)
        if ends is None:
            return None
        before = widths.get(write.dim, (0, 0))
        widths[write.dim] = (max(before[0], ends[0]), max(before[1], ends[1]))
        values.append(write)
        data = write.base
    rank = len(shape_of(node))
    roots = {_constant(write.value, module) for write in values}
    if len(roots) > 1 or (value := roots.pop()) is None:
        return None
    channels = {_channel(write.value, rank, write) for write in values}
    data, cropped = _cropped(data, widths)
    if cropped is None:
        return None
    return _bordered(node, data, value, channels, widths, cropped)


def _bordered(
    node: fx.Node,
    data: fx.Node,
    value: fx.Node | float,
    channels: set[int | None],
    widths: dict[int, tuple[int, int]],
    cropped: dict[int, tuple[int, int]],
) -> Border | None:
    """With the axis of the entries of a value; a number takes any."""
    sizes = node.meta["val"].shape
    rest = [axis for axis, size in enumerate(sizes) if axis not in widths and not is_symbolic(size)]
    if not isinstance(value, fx.Node):
        channel = 1 if 1 in rest else next(reversed(rest), None)
        return Border(data, value, channel, widths, cropped)
    (channel, *others) = channels
    return None if others or channel not in rest else Border(data, value, channel, widths, cropped)


def _around(node: fx.Node, module: nn.Module) -> Border | None:
    """The border that a constant is around the data that are written into it, slice in slice."""
    widths: dict[int, tuple[int, int]] = {}
    constants: list[fx.Node | float] = []
    data = node
    while (write := write_of(data)) is not None:
        inside = None if write.single else _inside(data)
        if inside is None or write.dim in widths:
            return None
        source, widths[write.dim] = inside
        constants.append(_value(_unsliced(write.base), data))
        data = source
    if is_static(data) or len({_constant(value, module) for value in constants}) > 1:
        return None
    value = _constant(constants[0], module)
    if value is None:
        return None
    channel = _channel(constants[0], len(shape_of(node)))
    widths = {dim: width for dim, width in widths.items() if width != (0, 0)}
    return _bordered(node, data, value, {channel}, widths, {})


def _inside(node: fx.Node) -> tuple[fx.Node, tuple[int, int]] | None:
    """What is written to a slice, and how many elements are left in front of it and behind."""
    while (source := replaced_by(node)) is not None:
        node = source
    source, start = argument(node, "src"), argument(node, "start") or 0
    dim = int(argument(node, "dim", 0))
    whole, part = node.meta["val"].shape[dim], source.meta["val"].shape[dim]
    if not isinstance(start, int):
        return None
    before: Any = start if start >= 0 else whole + start
    behind: Any = whole - before - part
    if is_symbolic(before) or is_symbolic(behind) or before < 0 or behind < 0:
        return None
    return source, (int(before), int(behind))


def _unsliced(node: fx.Node) -> fx.Node:
    while op_name(node) == "slice":
        node = node.args[0]  # type: ignore[assignment]
    return node


def _goes_on(user: fx.Node, node: fx.Node) -> bool:
    """True for a write into what the node gives, or around it."""
    if op_name(user) in ("slice_scatter", "select_scatter"):
        return True
    return takes_all(user) and any(_goes_on(later, user) for later in user.users)


def _ends(write: Write) -> tuple[int, int] | None:
    """How many elements are written from the front, and from behind."""
    size: Any = write.base.meta["val"].shape[write.dim]
    start, end = write.start, write.end
    if not is_symbolic(size):
        start = start if start >= 0 else max(start + size, 0)
        end = size if end is None else (end if end >= 0 else end + size)
        if not start < end:
            return None
        if start == 0 and end < size:
            return end, 0
        return (0, size - start) if end >= size and start > 0 else None
    if start == 0 and end is not None and end > 0:
        return end, 0
    return (0, -start) if start < 0 and end is None else None


def _channel(value: fx.Node | float, rank: int, write: Write | None = None) -> int | None:
    """The axis along which a constant has several entries, the second for one number; None for several axes."""
    sizes = list(shape_of(value)) if isinstance(value, fx.Node) else []
    axes = [axis - len(sizes) for axis, size in enumerate(sizes) if size != 1]
    if len(axes) != 1:
        return None if axes else 1
    axis = axes[0] + rank
    return axis - 1 if write and write.single and axis <= write.dim else axis


def _constant(value: fx.Node | float, module: nn.Module) -> fx.Node | float | None:
    """The number, or the expression of finite numbers whose reshapes are written; None for other values."""
    if not isinstance(value, fx.Node):
        return value if math.isfinite(value) else None
    if not is_static(value):
        return None
    while op_name(value) in _RESHAPES:
        source = value.args[0]
        if (
            not isinstance(source, fx.Node)
            or source.meta["val"].numel() != value.meta["val"].numel()
        ):
            break
        value = source
    numbers = evaluate(module, value).to(value.meta["val"].dtype)
    if not bool(numbers.isfinite().all()):
        return None
    return value if bool(numbers.any()) else 0.0


def _cropped(
    data: fx.Node, widths: dict[int, tuple[int, int]]
) -> tuple[fx.Node, dict[int, tuple[int, int]] | None]:
    """What is inside a border, and what is to be taken off; None where a size that is free may be too small."""
    off = dict(widths)
    rank = len(shape_of(data))
    if op_name(data) in ("pad", "constant_pad_nd"):
        pad: Any = argument(data, "pad")
        padded = {rank - 1 - k // 2: (pad[k], pad[k + 1]) for k in range(0, len(pad), 2)}
        inside = {
            axis: (widths.get(axis, (0, 0))[0] - low, widths.get(axis, (0, 0))[1] - high)
            for axis, (low, high) in padded.items()
            if isinstance(low, int) and isinstance(high, int) and low >= 0 and high >= 0
        }
        if len(inside) == len(padded) and all(min(rest) >= 0 for rest in inside.values()):
            data, off = data.args[0], off | inside  # type: ignore[assignment]
    off = {axis: rest for axis, rest in off.items() if rest != (0, 0)}
    sizes: Any = data.meta["val"].shape
    fits = all(not is_symbolic(sizes[axis]) and sum(off[axis]) <= sizes[axis] for axis in off)
    return data, off if fits else None
