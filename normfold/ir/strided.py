"""The diagonals of matrices by their name, where torch speaks of memory: `fill_diagonal_` is traced to strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.graph import argument, is_symbolic

_aten = torch.ops.aten
_NAMED = {
    _aten.as_strided.default: _aten.diagonal.default,
    _aten.as_strided_scatter.default: _aten.diagonal_scatter.default,
}


def name_diagonals(graph: fx.Graph) -> int:
    """Write reads and writes of the main diagonal of a matrix by strides as such, in place; returns how many."""
    found = [node for node in graph.nodes if node.target in _NAMED and _is_diagonal(node)]
    for node in found:
        given = 2 if node.target is _aten.as_strided_scatter.default else 1
        node.target = _NAMED[node.target]
        node.args, node.kwargs = (*node.args[:given], 0, 0, 1), {}
    return len(found)


def _is_diagonal(node: fx.Node) -> bool:
    base: Any = node.args[0]
    matrix = base.meta["val"]
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        return False
    sizes, strides = list(argument(node, "size")), list(argument(node, "stride"))
    offset = argument(node, "storage_offset")
    if any(map(is_symbolic, (*matrix.shape, *matrix.stride(), *sizes, *strides, offset))):
        return False
    starts = offset is None or offset == matrix.storage_offset()
    return starts and sizes == [min(matrix.shape)] and strides == [sum(matrix.stride())]
