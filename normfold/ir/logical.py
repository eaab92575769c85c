"""Ops that ask how a tensor lies in memory, written as ops on its elements: rewrites move elements, not memory.

conj(x), marked and not computed    -> the computed one; the same of the sign of imaginary parts
as_strided(view of x, ...)          -> as_strided(x.reshape(-1), ...)      x owns the memory, and is contiguous
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from normfold.ir.provenance import copy_provenance
from normfold.ir.strided import name_diagonals

_aten = torch.ops.aten
_COMPUTED = {
    _aten._conj.default: _aten.conj_physical.default,
    _aten._neg_view.default: _aten.neg.default,
}


def write_logically(graph: fx.Graph) -> None:
    """Replace such ops, in place; what has no such form stays."""
    name_diagonals(graph)
    for node in list(graph.nodes):
        if node.target in _COMPUTED:
            node.target = _COMPUTED[node.target]
            node.meta["val"] = node.meta["val"].resolve_conj().resolve_neg()
        elif node.target is _aten.as_strided.default:
            _flatten_source(graph, node)


def _flatten_source(graph: fx.Graph, node: fx.Node) -> None:
    source, sizes, strides = node.args[:3]
    offset = node.args[3] if len(node.args) > 3 else node.kwargs.get("storage_offset")
    assert isinstance(source, fx.Node)
    base = owner(source)
    value, seen = base.meta.get("val"), source.meta["val"]
    if not isinstance(value, Tensor) or value.dtype != seen.dtype or not value.is_contiguous():
        return
    if offset is None:
        offset = seen.storage_offset()
    if not isinstance(offset, int | fx.Node):
        return
    with graph.inserting_before(node):
        flat = graph.call_function(_aten.reshape.default, (base, [-1]))
    flat.meta["val"] = value.reshape(-1)
    copy_provenance(node, flat)
    node.args, node.kwargs = (flat, sizes, strides, offset), {}


def owner(node: fx.Node) -> fx.Node:
    """The node that made the memory of a tensor, of which the node may be a view."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        target = node.target
        views = isinstance(target, torch._ops.OpOverload) and bool(
            target._schema.arguments and target._schema.arguments[0].alias_info
        )
        if not views and target is not operator.getitem:
            break
        node = node.args[0]
    return node
