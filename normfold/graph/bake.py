"""The baker: evaluate each parameter expression once, in float64, cast once, store it, free the rest."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx, nn

from normfold.graph.expressions import evaluate, fetch, roots
from normfold.graph.graph import Graph

_PENDING = "normfold_pending"

# what `torch.nn.utils.parametrize` keeps in place of `weight`
_PARAMETRIZED = re.compile(r"\bparametrizations\.(\w+)\..*")


def bake(graph: Graph) -> list[str]:
    """Replace every parameter expression of ``graph`` by a constant, in place; returns the stored names.

    One expression is in memory at a time. A result keeps the name of the parameter that it replaces when
    that parameter has no other use, so that `conv1.weight` stays `conv1.weight`. The network's own
    expressions that only spread a small table (position biases) stay ops: baked they would swell the file.
    """
    fx_graph = graph.module.graph
    stored = []
    for node in [root for root in roots(fx_graph) if root.op != "get_attr" and not _spreads(root)]:
        value = evaluate(graph.module, node)
        if not isinstance(value, Tensor):
            continue
        value = value.to(node.meta["val"].dtype).contiguous().clone()
        name = _name(graph, node)
        graph.module.register_buffer(_PENDING, value)  # its final name is still taken by an operand
        with fx_graph.inserting_before(node):
            constant = fx_graph.get_attr(_PENDING)
        constant.meta.update(val=node.meta["val"], normfold_static=True)
        node.replace_all_uses_with(
            constant, delete_user_cb=lambda user: not user.meta.get("normfold_static")
        )
        _drop_dead(graph, node)
        delattr(graph.module, _PENDING)
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
    graph.baked = True
    return [str(constant.target) for constant, _ in stored]


def _rename(graph: Graph, constant: fx.Node, name: str) -> None:
    """Give a constant the name that an expression baked after it still needed."""
    target = str(constant.target)
    if target == name or _free_name(graph, name) != name:
        return
    value = fetch(graph.module, target)
    *path, leaf = target.split(".")
    delattr(fetch(graph.module, ".".join(path)) if path else graph.module, leaf)
    constant.target = name
    _store(graph.module, name, value)


def _spreads(node: fx.Node) -> bool:
    """True if a large result comes from much smaller tensors, by the network's own ops alone."""
    size = _bytes(node)
    if size < 1 << 20:
        return False
    leaves, seen, stack = 0, {node}, [node]
    while stack:
        current = stack.pop()
        if current.meta.get("normfold_made"):
            return False
        leaves += _bytes(current) if current.op == "get_attr" else 0
        fresh = set(current.all_input_nodes) - seen
        seen |= fresh
        stack.extend(fresh)
    return size > 2 * leaves


def _bytes(node: fx.Node) -> int:
    value: Any = node.meta["val"]
    return int(value.numel() * value.element_size()) if isinstance(value, Tensor) else 0


def _name(graph: Graph, node: fx.Node) -> str:
    """Name of the parameter that the expression stands for: same shape, nearest to the root."""
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
    user = next(iter(node.users), None)
    if user is not None and user.op == "call_function":
        for source in user.all_input_nodes:
            if source.op == "get_attr" and str(source.target).endswith(".weight"):
                return str(source.target).removesuffix("weight") + "bias"
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


def _drop_dead(graph: Graph, node: fx.Node) -> None:
    """Erase an expression that nothing reads any more, and let go of parameters that only it read."""
    stack = [node]
    while stack:
        current = stack.pop()
        if current.users or current.op == "placeholder":
            continue
        sources = current.all_input_nodes
        graph.module.graph.erase_node(current)
        stack.extend(source for source in sources if not source.users)


def _forget_unused(graph: Graph) -> None:
    """Delete parameters and buffers that no node reads."""
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    owned = [name for name, _ in graph.module.named_parameters(remove_duplicate=False)]
    owned += [name for name, _ in graph.module.named_buffers(remove_duplicate=False)]
    for name in owned:
        if name not in used:
            *path, leaf = name.split(".")
            owner = fetch(graph.module, ".".join(path)) if path else graph.module
            delattr(owner, leaf)
