"""Expand the few ops that the ONNX exporter cannot translate in place, instead of retracing the whole graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx

from normfold.domains.shapes import Shapes
from normfold.ir.provenance import copy_provenance
from normfold.targets import integer, tables

_TRANSLATED = integer.TRANSLATED | tables.TRANSLATED
Table = dict[Any, Callable[..., Any]]


class NotLocal(Exception):
    """An op that cannot be expanded by looking at it alone."""


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


def expand(graph: fx.Graph, table: Table) -> None:
    """Replace every op of ``graph`` that needs it by its decomposition, in place.

    Raises:
        NotLocal: one of them has no decomposition that stands alone; some of the others may be expanded.
    """
    for node in [node for node in graph.nodes if needs_expansion(node, table)]:
        result = _inline(graph, node, _traced(node, table), table)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _traced(node: fx.Node, table: Table) -> fx.Graph:
    sources = node.all_input_nodes
    values = [source.meta["val"] for source in sources]
    if not sources or not all(isinstance(value, Tensor) for value in [*values, node.meta["val"]]):
        raise NotLocal(node.name)

    def call(*tensors: Tensor) -> Any:
        known = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    shapes = Shapes.of(*sources)
    try:
        with shapes.active(), _sizes_stay(shapes):
            return make_fx(call, decomposition_table=table)(*values).graph
    except Exception as error:  # symbolic sizes, data-dependent code: only a full trace knows
        raise NotLocal(node.name) from error


@contextmanager
def _sizes_stay(shapes: Shapes) -> Iterator[None]:
    """An error where a free size is read as a number: that would fix it, in the original too."""
    sizes, log = shapes.mode.shape_env, logging.getLogger(symbolic_shapes.__name__)
    before, log.disabled = log.disabled, True  # torch tells the user of the error
    try:
        with sizes.error_on_new_guards() if sizes is not None else nullcontext():
            yield
    finally:
        log.disabled = before


def _inline(graph: fx.Graph, node: fx.Node, body: fx.Graph, table: Table) -> fx.Node:
    copies = dict[fx.Node, fx.Node]()
    sources = iter(node.all_input_nodes)
    with graph.inserting_before(node):
        for step in body.nodes:
            if step.op == "placeholder":
                copies[step] = next(sources)
            elif step.op == "output":
                result = copies.get(step.args[0])
                if result is None or result.meta["val"].shape != node.meta["val"].shape:
                    raise NotLocal(node.name)
                return result
            elif step.op != "call_function" or needs_expansion(step, table):
                raise NotLocal(node.name)
            elif "val" in step.meta:
                copies[step] = graph.node_copy(step, copies.__getitem__)
                copy_provenance(node, copies[step])
    raise NotLocal(node.name)
