"""Writes to diagonals as choices by a mask, which the exporter refuses, and reads of them as slices.

The exporter reads a diagonal as a sum of products with a mask, where an infinity beside it makes NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from normfold.errors import ExportError
from normfold.ir.graph import argument, is_symbolic, op_name
from normfold.ir.provenance import source_line
from normfold.ir.strided import name_diagonals
from normfold.targets.calls import call, size_of

_aten = torch.ops.aten
_READS = (_aten.diagonal.default, _aten.diagonal_copy.default)
_WRITE, _STRIDED = _aten.diagonal_scatter.default, _aten.as_strided_scatter.default
_HINT = "write it as `torch.where` with a mask"


def write_diagonals(graph: fx.Graph) -> int:
    """Write reads and writes of diagonals of a fixed length in forms of ONNX, in place; returns how many.

    Raises:
        ExportError: a write to a diagonal of free sizes, or to other places by strides.
    """
    name_diagonals(graph)
    _require_fixed(graph)
    found = 0
    for node in [node for node in graph.nodes if node.target in (_WRITE, *_READS)]:
        if not node.users or not all(isinstance(size, int) for size in _place(node)):
            continue  # what is only written over is not read; of free sizes the exporter knows the read
        with graph.inserting_before(node):
            result = _chosen(graph, node) if node.target is _WRITE else _slice(graph, node)
        node.replace_all_uses_with(result)
        _erase(graph, node)
        found += 1
    return found


def _require_fixed(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target is _STRIDED:
            what, hint = "a write by strides has no form in ONNX", _HINT
            found = f"`{op_name(node)}`; `fill_diagonal_` has one for matrices of fixed sizes"
        elif node.target is _WRITE and any(map(is_symbolic, _place(node)[2:])):
            what = "a write to a diagonal of free sizes has no form in ONNX"
            found = f"a matrix of {' x '.join(map(str, _place(node)[2:]))}"
            hint = f"{_HINT}, or fix these sizes (without `--dynamic`, with `--batch static`)"
        else:
            continue
        raise ExportError(what, where=source_line(node) or f"`{node.name}`", found=found, hint=hint)


def _place(node: fx.Node) -> tuple[int, int, Any, Any]:
    """The two axes of the matrices, and the sizes of these."""
    base: Any = node.args[0]
    shape = base.meta["val"].shape
    first, second = (int(argument(node, name)) % len(shape) for name in ("dim1", "dim2"))
    return first, second, shape[first], shape[second]


def _length(node: fx.Node) -> int:
    _, _, rows, columns = _place(node)
    offset = int(argument(node, "offset"))
    length: int = min(rows + min(offset, 0), columns - max(offset, 0))
    return max(0, length)


def _chosen(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """where(mask, v, x): v is what is written, along rows (or columns, of a diagonal below the main one)."""

    def make(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return call(graph, node, target, *args, **kwargs)

    base, dtype = node.args[0], node.meta["val"].dtype
    assert isinstance(base, fx.Node)
    if not _length(node):
        return base
    source: Any = _filling(argument(node, "src"))
    if not isinstance(source, fx.Node):
        source = make(_aten.full.default, [], source, dtype=dtype)
    elif source.meta["val"].dtype != dtype:
        source = make(_aten.to.dtype, source, dtype)
    if source.meta["val"].dim():
        source = _spread(graph, node, source)
    first, second, rows, columns = _place(node)
    row, column = (
        make(_aten.view.default, make(_aten.arange.default, size), _single(node, axis, size))
        for axis, size in ((first, rows), (second, columns))
    )
    mask = make(_aten.eq.Tensor, make(_aten.add.Tensor, row, argument(node, "offset")), column)
    return make(_aten.where.self, mask, source, base)


def _single(node: fx.Node, axis: int, size: int) -> list[int]:
    """The shape of a vector along ``axis``."""
    return [size if place == axis else 1 for place in range(node.meta["val"].dim())]


def _filling(source: Any) -> Any:
    """The number that fills a tensor, as a number or a tensor without axes; else the tensor."""
    if source.target in (_aten.zero.default, _aten.zeros_like.default):
        return 0
    if source.target in (_aten.fill.Scalar, _aten.fill.Tensor, _aten.full_like.default):
        return source.args[1]
    return source


def _spread(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    """The source, whose last axis is the diagonal, on the axes of its target.

    The mask hides what it is filled up with: numbers of the target, which every type has.
    """
    base: Any = node.args[0]
    first, second, rows, columns = _place(node)
    below = int(argument(node, "offset")) < 0
    along, across = (second, first) if below else (first, second)
    length, size = _length(node), columns if below else rows
    if length < size:
        rest = call(graph, node, _aten.select.int, base, across, 0)
        axis = along - (across < along)
        rest = call(graph, node, _aten.slice.Tensor, rest, axis, length, size)
        rest = call(graph, node, _aten.movedim.int, rest, axis, -1)
        source = call(graph, node, _aten.cat.default, [source, rest], -1)
    source = call(graph, node, _aten.unsqueeze.default, source, -1)
    rank = base.meta["val"].dim()
    order = [axis for axis in range(rank) if axis not in (along, across)] + [along, across]
    order = [order.index(axis) for axis in range(rank)]
    return call(graph, node, _aten.permute.default, source, order)


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Every (columns + 1)th number of the matrix as a row."""
    base: Any = node.args[0]
    first, second, rows, columns = _place(node)
    rank, offset, length = base.meta["val"].dim(), int(argument(node, "offset")), _length(node)
    others = [axis for axis in range(rank) if axis not in (first, second)]
    sizes = [size_of(graph, node, base, axis) for axis in others]
    if [*others, first, second] != list(range(rank)):
        base = call(graph, node, _aten.permute.default, base, [*others, first, second])
    base = call(graph, node, _aten.reshape.default, base, [*sizes, rows * columns])
    start = max(offset, 0) - min(offset, 0) * columns if length else 0
    end = start + (length - 1) * (columns + 1) + 1 if length else 0
    return call(graph, node, _aten.slice.Tensor, base, len(others), start, end, columns + 1)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node and, of what it reads, what nothing else does: the exporter would translate it all the same."""
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        if source.op == "call_function" and not source.users and not source.is_impure():
            _erase(graph, source)
