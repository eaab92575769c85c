"""Nodes that the export inserts into a graph of fake values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from normfold.domains.shapes import Shapes
from normfold.ir import facts
from normfold.ir.facts import Fact
from normfold.ir.graph import argument, is_symbolic, op_name
from normfold.ir.provenance import copy_provenance
from normfold.ops.table import norm_of


@dataclass(frozen=True)
class WrittenFor(Fact):
    """The op and the name of a node by which a user knows this one."""

    kind_name: ClassVar[str] = "written-for"
    of_numbers: ClassVar[bool] = False
    op: str
    name: str


def call(graph: fx.Graph, origin: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call with its fake value, at the graph's insertion point, with the provenance of ``origin``.

    It is `WrittenFor` ``origin``.
    """
    node = graph.call_function(target, args, kwargs)
    Shapes.of(origin).infer(node)
    facts.put(node, WrittenFor(op_name(origin), origin.name))
    copy_provenance(origin, node)
    node.meta.setdefault(
        "nn_module_stack", {}
    )  # of an input: the exporter warns where it is missing
    return node


def size_of(graph: fx.Graph, origin: fx.Node, source: Any, dim: int) -> int | fx.Node:
    """Size of ``source`` along ``dim``: a number, or a node where it is known at run time only."""
    size = source.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    node = graph.call_function(
        torch.ops.aten.sym_size.int, (source, dim % source.meta["val"].dim())
    )
    Shapes.of(source).infer(node)
    copy_provenance(origin, node)
    return node


def share_sizes(graph: fx.Graph) -> None:
    """Let equal sizes be one node, in place, so that what is made of them, such as masks, is seen to be equal."""
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        size = node.meta.get("val")
        if node.target is not torch.ops.aten.sym_size.int or not is_symbolic(size):
            continue
        known = first.setdefault(str(size.node.expr), node)
        if known is not node and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(known)
            graph.erase_node(node)


def loosen_views(graph: fx.Graph) -> None:
    """Let every view be a reshape: other ops, and other types, lay out their results otherwise."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default


def state_eps(node: fx.Node, dtype: torch.dtype) -> None:
    """Give an RMS norm without an eps the one that torch chooses by the type ``dtype``."""
    if norm_of(node, "shape") and argument(node, "eps") is None:
        node.args = (*node.args[:2], argument(node, "weight"), torch.finfo(dtype).eps)
        node.kwargs = {}
