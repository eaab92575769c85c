"""Expand the few ops that the ONNX exporter cannot translate in place, instead of retracing the whole graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from normfold.ir.inline import Table, inline
from normfold.targets import integer, tables

_TRANSLATED = integer.TRANSLATED | tables.TRANSLATED


def needs_expansion(node: fx.Node, table: Table) -> bool:
    """True if ``node`` is an op with an entry in ``table``, or not an ATen op at all."""
    if node.op != "call_function":
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    if target in _TRANSLATED:
        return False
    return target in table or target.namespace != "aten" or target._schema.is_mutable


def expand(graph: fx.Graph, table: Table) -> int:
    """Replace every op of ``graph`` that needs it by its decomposition, in place; returns how many.

    Raises:
        NotLocal: one of them has no decomposition that stands alone; some of the others may be expanded.
    """
    found = [node for node in graph.nodes if needs_expansion(node, table)]
    known: dict[Any, fx.Graph] = {}
    for node in found:
        inline(graph, node, table, lambda step: needs_expansion(step, table), known)
    return len(found)
