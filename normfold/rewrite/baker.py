"""The baker: evaluate each parameter expression once, in float64, cast once, store it, free the rest."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from normfold.ir import facts
from normfold.ir.expressions import Made, evaluate, fetch, is_static, made_of, roots
from normfold.ir.graph import Graph
from normfold.ir.states import State
from normfold.ops.integer_ops import UNSTORED, dequantize, to_steps
from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, kind_of

_STORED = "_stored"

# what `torch.nn.utils.parametrize` keeps in place of `weight`
_PARAMETRIZED = re.compile(r"\bparametrizations\.(\w+)\..*")


def bake(graph: Graph, limit: int | None = None) -> list[str]:
    """Replace every parameter expression of ``graph`` by a constant, in place; returns the stored names.

    ``limit`` stops after so many.
    One expression is in memory at a time. A result keeps the name of the parameter that it replaces when
    that parameter has no other use, so that `conv1.weight` stays `conv1.weight`. The network's own
    expressions that baking would make dearer stay ops (see `_stays`).
    """
    fx_graph = graph.module.graph
    stored = []
    readers = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr")
    pending = _pending(graph)
    for node in pending[:limit]:
        value = evaluate(graph.module, node)
        if not isinstance(value, Tensor):
            continue
        # one copy: the cast's own, dense, and never a view of a parameter
        value = value.to(node.meta["val"].dtype, copy=True, memory_format=torch.contiguous_format)
        name = _name(graph, node)
        graph.module.register_buffer(_STORED, value)  # its final name is still taken by an operand
        with fx_graph.inserting_before(node):
            constant = fx_graph.create_node("get_attr", _STORED, name=name.replace(".", "_"))
        constant.meta.update(val=node.meta["val"])
        node.replace_all_uses_with(constant, delete_user_cb=_reads_stored)
        _drop_dead(graph, node, readers)
        delattr(graph.module, _STORED)
        constant.target = _free_name(graph, name)
        _store(graph.module, constant.target, nn.Parameter(value, requires_grad=False))
        stored.append((constant, name))
    for node in list(fx_graph.nodes):
        if node.op == "get_attr" and not node.users:
            fx_graph.erase_node(node)
    graph.module.delete_all_unused_submodules()
    _forget_unused(graph)
    for constant, name in stored:
        _rename(graph, constant, name)
    if limit is None or limit >= len(pending):
        graph.states |= {State.BAKED}
    return [str(constant.target) for constant, _ in stored]


def needs_baking(graph: Graph) -> bool:
    """True if a file of the graph would hold expressions, or values on grids that are not stored."""
    return bool(_pending(graph)) or any(node.target in UNSTORED for node in graph.nodes)


def _pending(graph: Graph) -> list[fx.Node]:
    """What becomes a tensor: every expression that an op on activations reads; of a weight that is dequantised,
    the integers and scales."""
    found: dict[fx.Node, None] = {}
    for root in roots(graph.module.graph):
        found |= dict.fromkeys(root.all_input_nodes if root.target is dequantize else [root])
    return [node for node in found if node.op != "get_attr" and not _stays(node)]


def _reads_stored(user: fx.Node) -> bool:
    return not is_static(user) or user.target is dequantize


def _rename(graph: Graph, constant: fx.Node, name: str) -> None:
    """Give a constant the name that an expression baked after it still needed."""
    target = str(constant.target)
    if target == name or _free_name(graph, name) != name:
        return
    value = fetch(graph.module, target)
    _delete(graph.module, target)
    constant.target = name
    _store(graph.module, name, value)


def _stays(node: fx.Node) -> bool:
    """True for an expression of the network's own that baking would make dearer.

    That is a large result spread out of much smaller tensors (position biases), and a tensor with other
    readers that is only turned or cut (tied embedding and head): baked, it would be stored twice.
    """
    own = made_of(node)
    if any(facts.get(part, Made) for part in own):
        return False
    tensors = [part for part in own if part.op == "get_attr"]
    moved = all(kind_of(part) is Kind.MOVE for part in own if part.op != "get_attr")
    if moved and len(tensors) == 1 and len(tensors[0].users) > 1:
        return True
    size = _bytes(node)
    return size >= 1 << 20 and size > 2 * sum(map(_bytes, tensors))


def _bytes(node: fx.Node) -> int:
    value: Any = node.meta["val"]
    return int(value.numel() * value.element_size()) if isinstance(value, Tensor) else 0


def _name(graph: Graph, node: fx.Node) -> str:
    """Name of the parameter that the expression stands for: the bias of a named weight, or the operand of
    the same shape that is nearest to the root. Integers of it have their bits behind."""
    for user in node.users:
        linear = linear_of(user)
        if linear is not None and linear.bias is node and linear.weight is not node:
            weight = _name(graph, linear.weight)
            if weight.endswith("weight"):
                return weight.removesuffix("weight") + "bias"
    if node.target is to_steps:
        source, low, high, rounding = node.args[0], *node.args[5:8]
        assert isinstance(source, fx.Node) and isinstance(high, int)
        if source.target is torch.ops.aten.t.default:
            (source,) = source.all_input_nodes
        signed = f"int{high.bit_length() + 1}" if low else f"uint{high.bit_length()}"
        kind = "fp8" if rounding == "e4m3" else signed
        return f"{_name(graph, source)}_{kind}"
    shape = node.meta["val"].shape
    queue, seen = [node], {node}
    while queue:
        current = queue.pop(0)
        if current.op == "get_attr" and current.meta["val"].shape == shape:
            target = str(current.target)
            if not target.startswith("normfold_"):
                return _PARAMETRIZED.sub(r"\1", target)
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return f"{node.name}_baked"


def _free_name(graph: Graph, name: str) -> str:
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    candidate, number = name, 2
    while candidate in used or _blocked(graph.module, candidate):
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _blocked(module: nn.Module, name: str) -> bool:
    """True if a path runs through something that is not a module."""
    current: object = module
    for part in name.split(".")[:-1]:
        if not isinstance(current, nn.Module):
            return True
        current = getattr(current, part, nn.Module())
    return not isinstance(current, nn.Module) or isinstance(
        getattr(current, name.split(".")[-1], None), nn.Module
    )


def _store(module: nn.Module, name: str, value: nn.Parameter) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            setattr(module, part, nn.Module())
        module = getattr(module, part)
    if hasattr(module, leaf):
        delattr(module, leaf)
    module.register_parameter(leaf, value)


def _drop_dead(graph: Graph, node: fx.Node, readers: Counter[str]) -> None:
    """Erase an expression that nothing reads any more, and let go of parameters that only it read."""
    stack = [node]
    while stack:
        current = stack.pop()
        if current.users or current.op == "placeholder":
            continue
        sources = current.all_input_nodes
        graph.module.graph.erase_node(current)
        if current.op == "get_attr":
            readers[str(current.target)] -= 1
            if not readers[str(current.target)]:
                _delete(graph.module, str(current.target))
        stack.extend(source for source in sources if not source.users)


def _forget_unused(graph: Graph) -> None:
    """Delete parameters and buffers that no node reads."""
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    owned = [name for name, _ in graph.module.named_parameters(remove_duplicate=False)]
    owned += [name for name, _ in graph.module.named_buffers(remove_duplicate=False)]
    for name in owned:
        if name not in used:
            _delete(graph.module, name)


def _delete(module: nn.Module, name: str) -> None:
    *path, leaf = name.split(".")
    delattr(fetch(module, ".".join(path)) if path else module, leaf)
