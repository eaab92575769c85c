"""Parts of a network under `torch.no_grad` or `torch.autocast(enabled=False)`, which mean nothing at eval time.

torch.export stores each as a graph within the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from normfold.ir.expressions import fetch

# where the graph stands among the arguments, and which of those must be False
_OPS: dict[Any, tuple[int, int | None]] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: (1, None),
    torch.ops.higher_order.wrap_with_autocast: (4, 2),
}


def unwrap(module: fx.GraphModule) -> None:
    """Put the ops of such parts in the place of the parts."""
    for node in iter(lambda: next(filter(_is_wrapped, module.graph.nodes), None), None):
        _unwrap_one(module, node)


def _is_wrapped(node: fx.Node) -> bool:
    if node.target not in _OPS:
        return False
    _, switch = _OPS[node.target]
    return switch is None or node.args[switch] is False


def _unwrap_one(module: fx.GraphModule, node: fx.Node) -> None:
    place, _ = _OPS[node.target]
    held, operands = node.args[place], node.args[place + 1 :]
    assert isinstance(held, fx.Node)
    body = fetch(module, str(held.target))
    copies: dict[fx.Node, Any] = dict(
        zip(body.graph.find_nodes(op="placeholder"), operands, strict=True)
    )
    results: Any = None
    with module.graph.inserting_before(node):
        for step in body.graph.nodes:
            if step.op == "output":
                results = fx.map_arg(step.args[0], copies.__getitem__)
            elif step.op != "placeholder":
                copies[step] = module.graph.node_copy(step, copies.__getitem__)
                if step.op == "get_attr":  # the graph of a part within the part
                    copies[step].target = f"{held.target}.{step.target}"
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    leaves = pytree.tree_leaves(results)
    for user in list(node.users):
        user.replace_all_uses_with(leaves[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not held.users:
        module.graph.erase_node(held)
