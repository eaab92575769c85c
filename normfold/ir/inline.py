"""One op of a captured graph, traced alone and replaced by the ops that it is made of."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from normfold.ir.provenance import copy_provenance

Table = Mapping[Any, Callable[..., Any]]


class NotLocal(Exception):
    """An op that cannot be replaced by looking at it alone."""


def inline(
    graph: fx.Graph,
    node: fx.Node,
    table: Table,
    unknown: Callable[[fx.Node], bool],
    known: dict[Any, fx.Graph],
) -> None:
    """Replace an op by what it is made of, in place.

    Args:
        table: functions that stand for ops, as `torch.export` takes them.
        unknown: true for ops that may not be left.
        known: what calls were made of before, with this table: the layers of a network repeat each other.

    Raises:
        NotLocal: it cannot be traced alone, or leaves such an op.
    """
    key = _call_of(node)
    body = known[key] = known[key] if key in known else _traced(node, table)
    copies = dict(zip(body.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    with graph.inserting_before(node):
        for step in body.nodes:
            if step.op == "output":
                _replace(node, step.args[0], copies)
            elif step.op == "placeholder":
                continue
            elif step.op != "call_function" or unknown(step):
                raise NotLocal(node.name)
            elif "val" in step.meta:
                copies[step] = graph.node_copy(step, copies.__getitem__)
                copy_provenance(node, copies[step])
    graph.erase_node(node)


def _call_of(node: fx.Node) -> Any:
    """What tells the trace of one call from that of another."""
    places = {source: place for place, source in enumerate(node.all_input_nodes)}

    def spec(source: fx.Node) -> Any:
        value = source.meta.get("val")
        if not isinstance(value, Tensor):
            return f"%{places[source]} {value}"
        layout = (value.shape, value.stride(), value.storage_offset(), value.is_conj())
        return f"%{places[source]} {value.dtype} {value.device} {layout}"

    args, kwargs = fx.map_arg((node.args, node.kwargs), spec)
    return node.target, repr(args), repr(kwargs)


def _traced(node: fx.Node, table: Table) -> fx.Graph:
    sources = node.all_input_nodes
    values = [source.meta.get("val") for source in sources]
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    if not modes or not all(isinstance(value, Tensor | torch.SymInt) for value in values):
        raise NotLocal(node.name)

    def call(*given: Any) -> Any:
        known = dict(zip(sources, given, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    try:
        with sizes_stay(modes[0]), enable_python_dispatcher(), modes[0], torch.no_grad():
            plain = [value.detach() if isinstance(value, Tensor) else value for value in values]
            return make_fx(call, decomposition_table=table)(*plain).graph
    except (
        Exception
    ) as error:  # sizes that must be known, code that data decide: only a full trace knows
        raise NotLocal(node.name) from error


def _replace(node: fx.Node, result: Any, copies: dict[fx.Node, fx.Node]) -> None:
    """Hand the readers of a node what came of it; of a list, each its element."""
    results, values = pytree.tree_leaves(result), pytree.tree_leaves(node.meta["val"])
    made = [copies.get(leaf) if isinstance(leaf, fx.Node) else None for leaf in results]
    if len(made) != len(values) or not all(
        new is not None and _alike(new.meta["val"], value)
        for new, value in zip(made, values, strict=True)
    ):
        raise NotLocal(node.name)
    if isinstance(node.meta["val"], Tensor):
        node.replace_all_uses_with(made[0])  # type: ignore[arg-type]
        return
    for user in list(node.users):
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            raise NotLocal(node.name)
        user.replace_all_uses_with(made[user.args[1]])  # type: ignore[arg-type]
        user.graph.erase_node(user)


def _alike(new: Any, old: Any) -> bool:
    return isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype


@contextmanager
def sizes_stay(mode: FakeTensorMode) -> Iterator[None]:
    """An error where a free size is read as a number: that would fix it, in the original too."""
    sizes, log = mode.shape_env, logging.getLogger(symbolic_shapes.__name__)
    before, log.disabled = log.disabled, True  # torch tells the user of the error
    try:
        with sizes.error_on_new_guards() if sizes is not None else nullcontext():
            yield
    finally:
        log.disabled = before
