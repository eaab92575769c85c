"""Half precision inside a network, in float32 for runtimes without kernels for it: nothing is rounded more.

What a network computes in float64 stays: rounding it is for the user to ask for (``--precision fp32``).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.domains.shapes import Shapes
from normfold.ir.expressions import fetch
from normfold.ir.graph import Graph, op_name
from normfold.ir.provenance import source_line
from normfold.ops.table import row_of
from normfold.target import Target
from normfold.targets.calls import state_eps

_HALF = (torch.float16, torch.bfloat16)


def widened(graph: Graph, target: Target) -> tuple[Graph, str]:
    """A copy that computes in float32 what ``target`` has no kernels for, inputs and outputs too, and a note.

    Without such values, or where the bits of one are read or a graph within the graph computes with it, the graph
    itself comes back, and no note.
    """
    lacking = {dtype for dtype in _HALF if _name(dtype) not in target.floats}
    found = [node for node in graph.nodes if _types(node) & lacking]
    first = next((node for node in found if node.op == "call_function"), None)
    if not found or any(_keeps_types(user) for node in found for user in node.users):
        return graph, ""
    (dtype, *_) = sorted(map(_name, _types(first or found[0]) & lacking))
    result, stored = graph.copy(), dict[int, nn.Parameter]()
    shapes = Shapes.of(*result.nodes)
    for node in result.nodes:
        if node.op == "get_attr" and _types(node) & lacking:
            _store(result.module, str(node.target), lacking, stored)
        _widen(node, lacking, shapes)
    result.recompile()
    by = op_name(first) if first is not None else found[0].name
    line = source_line(first).split(": ")[0] if first is not None else ""
    place = f" at {line}" if line else ""
    return result, (
        f"`{by}`{place} is in {dtype}, for which {target.runtime} has no kernels: it is float32 in the file"
    )


def _store(
    module: fx.GraphModule, target: str, lacking: set[torch.dtype], stored: dict[int, nn.Parameter]
) -> None:
    value = fetch(module, target)
    if value.dtype not in lacking:  # done when another node read it
        return
    if id(value) not in stored:  # one tensor may have two names
        stored[id(value)] = nn.Parameter(value.detach().float(), False)
    owner, _, name = target.rpartition(".")
    parent = module.get_submodule(owner)
    delattr(parent, name)
    setattr(parent, name, stored[id(value)])


def _widen(node: fx.Node, lacking: set[torch.dtype], shapes: Shapes) -> None:
    before = _types(node)
    for dtype in before & lacking:  # by which torch chooses it
        state_eps(node, dtype)

    def wide(dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if dtype in lacking else dtype

    node.args, node.kwargs = pytree.tree_map_only(torch.dtype, wide, (node.args, node.kwargs))
    if before & lacking:
        shapes.retype(node, wide)
    if node.op == "call_function" and row_of(node).move.casts and node.all_input_nodes:
        source = node.all_input_nodes[0]
        if before & lacking and _types(source) == _types(node):
            node.replace_all_uses_with(source)


def _keeps_types(node: fx.Node) -> bool:
    """True for what cannot read other types: bits taken as those of another type, and graphs within the graph."""
    if node.op != "call_function":
        return False
    return op_name(node) == "bitcast" or isinstance(node.target, torch._ops.HigherOrderOperator)


def _types(node: fx.Node) -> set[torch.dtype]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
