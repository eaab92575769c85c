"""Assignments to slices, as capture leaves them: scatters of copies of expanded constants into slices of slices.

A border of one number per channel is a padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from normfold.ir.expressions import evaluate, is_static
from normfold.ir.graph import argument, is_symbolic, op_name, shape_of
from normfold.ops.selection import takes_all

_END = 2**62  # what `x[1:]` is captured as
_SOURCES = {"fill": "value", "copy": "src", "expand": "self"}
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
    an entry for each index of ``channel``.
    """

    data: fx.Node
    value: fx.Node | float
    channel: int
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
        if name == "zero":
            return 0.0
        source = argument(node, _SOURCES[name]) if name in _SOURCES else None
        if isinstance(source, bool | int | float):
            return float(source)
        if not isinstance(source, fx.Node) or source.meta["val"].dtype != dtype:
            return node
        node = source


def border_of(node: fx.Node, module: nn.Module) -> Border | None:
    """The border that the last of a chain of writes completes.

    All write the same constant from an end of an axis on, and one of several entries along an axis without border.
    """
    if write_of(node) is None or any(_goes_on(user, node) for user in node.users):
        return None
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
    channels = {_channel(write, rank) for write in values}
    data, cropped = _cropped(data, widths)
    channel = channels.pop()
    if cropped is None or channels or channel is None or channel in widths or channel >= rank:
        return None
    if is_symbolic(shape_of(node)[channel]):
        return None
    return Border(data, value, channel, widths, cropped)


def _goes_on(user: fx.Node, node: fx.Node) -> bool:
    """True for a write into what the node gives, or around it."""
    if op_name(user) in ("slice_scatter", "select_scatter"):
        return True
    return takes_all(user) and any(_goes_on(later, user) for later in user.users)


def _ends(write: Write) -> tuple[int, int] | None:
    """How many elements are written from the front, and from behind."""
    size: Any = shape_of(write.base)[write.dim]
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


def _channel(write: Write, rank: int) -> int | None:
    """The axis along which a constant has several entries, the second for one number; None for several axes."""
    sizes = list(shape_of(write.value)) if isinstance(write.value, fx.Node) else []
    axes = [axis - len(sizes) for axis, size in enumerate(sizes) if size != 1]
    if len(axes) != 1:
        return None if axes else 1
    axis = axes[0] + rank
    return axis - 1 if write.single and axis <= write.dim else axis


def _constant(value: fx.Node | float, module: nn.Module) -> fx.Node | float | None:
    """The number, or the expression of finite numbers whose reshapes are written; None for other values."""
    if not isinstance(value, fx.Node):
        return value
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
    numbers = evaluate(module, value)
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
    sizes: Any = shape_of(data)
    fits = all(not is_symbolic(sizes[axis]) and sum(off[axis]) <= sizes[axis] for axis in off)
    return data, off if fits else None
