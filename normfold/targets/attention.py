"""Attention as plain ops, in whatever form it was called: for opsets and runtimes without the fused op.

torch's own translation computes the shapes of a transpose at run time (fourteen ops for each) and scales both
operands. ``softmax((q * s) @ k^T) @ v`` is the same function: a runtime recognises it, a person can read it, and
``s`` still comes before the product, so that half precision overflows no earlier.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.expressions import evaluate, is_static
from normfold.ir.graph import argument
from normfold.targets.calls import call, loosen_views, size_of

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default


def write_attention(module: fx.GraphModule, only_unfused: bool = False) -> int:
    """Expand the attentions of ``module`` in place; returns how many.

    ``only_unfused``: those that the fused op of ONNX has no form for. It takes four axes, broadcasts none of
    queries, keys and values, and onnxruntime refuses a scale that is not positive.

    Masks of both kinds, causal attention (aligned at the top left, as torch does) and grouped heads are written
    out; what stays is attention with dropout, or with a width that is known at run time only.
    """
    graph = module.graph
    found = [node for node in graph.nodes if node.target is _ATTENTION and _is_known(node)]
    if only_unfused:
        found = [node for node in found if not _has_fused_form(node)]
    for node in found:
        with graph.inserting_before(node):
            result = _expanded(module, node)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    if found:
        loosen_views(graph)
    return len(found)


def suit_fused(module: fx.GraphModule) -> int:
    """Write the attentions of ``module`` as onnxruntime's fused op takes them; returns how many changed.

    It refuses a mask that has one row or one column for all of them, and the translation heads that are called
    grouped where each has its own keys. A row of which a float mask hides everything by the least number is zero
    to the op; to torch it is zero for minus infinity only, and the average for every finite number.
    """
    graph, changed = module.graph, 0
    found: dict[tuple[fx.Node, str, str], fx.Node] = {}
    for node in [node for node in graph.nodes if node.target is _ATTENTION]:
        mask, (query, key) = argument(node, "attn_mask"), node.args[:2]
        grouped = argument(node, "enable_gqa") and _shape(query)[-3] == _shape(key)[-3]
        if grouped:
            node.kwargs = {**node.kwargs, "enable_gqa": False}
        changed += int(grouped)
        if not isinstance(mask, fx.Node):
            continue
        place = (mask, str(_shape(query)[-2]), str(_shape(key)[-2]))
        if place not in found:
            with graph.inserting_before(node):
                found[place] = _finite(module, node, _widened(graph, node, mask))
        if found[place] is not mask:
            node.replace_input_with(mask, found[place])
            changed += 1
    return changed


def _widened(graph: fx.Graph, node: fx.Node, mask: fx.Node) -> fx.Node:
    """The mask with a row for each query and a column for each key."""
    sizes: list[Any] = [-1] * len(_shape(mask))
    for axis, part in ((-2, node.args[0]), (-1, node.args[1])):
        if _shape(mask)[axis] == 1 and _shape(part)[-2] != 1:
            sizes[axis] = size_of(graph, node, part, -2)
    narrow = all(size == -1 for size in sizes)
    return mask if narrow else call(graph, node, _aten.expand.default, mask, sizes)


def _finite(module: fx.GraphModule, node: fx.Node, mask: fx.Node) -> fx.Node:
    """A float mask whose finite numbers are above the least, unless each row is known to see something."""
    graph, dtype = module.graph, mask.meta["val"].dtype
    if dtype == torch.bool:
        return mask
    least = torch.finfo(dtype).min
    if is_static(mask) and bool((evaluate(module, mask) > least / 2).any(-1).all()):
        return mask
    hidden = call(graph, node, _aten.eq.Scalar, mask, -math.inf)
    higher = call(graph, node, _aten.clamp.default, mask, least / 2)
    return call(graph, node, _aten.masked_fill.Scalar, higher, hidden, -math.inf)


def _has_fused_form(node: fx.Node) -> bool:
    parts = [_shape(part) for part in node.args[:3]]
    scale = argument(node, "scale")
    if any(len(part) != 4 for part in parts) or not (scale is None or scale > 0):
        return False
    axes = (0,) if argument(node, "enable_gqa") else (0, 1)
    return all(len({str(part[axis]) for part in parts}) == 1 for axis in axes)


def _is_known(node: fx.Node) -> bool:
    operands = node.args[:3]
    if not all(isinstance(x, fx.Node) and isinstance(x.meta.get("val"), Tensor) for x in operands):
        return False
    return not argument(node, "dropout_p") and isinstance(_shape(node.args[0])[-1], int)


def _expanded(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    graph = module.graph
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node)
    scale, mask = argument(node, "scale"), argument(node, "attn_mask")
    if scale is None:
        scale = 1 / math.sqrt(_shape(query)[-1])
    if argument(node, "enable_gqa"):
        key, value = (_repeated(graph, node, part, query) for part in (key, value))
    scaled = call(graph, node, _aten.mul.Tensor, query, scale)
    turned = call(graph, node, _aten.transpose.int, key, -2, -1)
    weights = call(graph, node, _aten.matmul.default, scaled, turned)
    if argument(node, "is_causal"):
        rows, columns = size_of(graph, node, query, -2), size_of(graph, node, key, -2)
        row = call(graph, node, _aten.arange.default, rows)
        row = call(graph, node, _aten.unsqueeze.default, row, 1)
        column = call(graph, node, _aten.arange.default, columns)
        future = call(graph, node, _aten.lt.Tensor, row, column)
        weights = call(graph, node, _aten.masked_fill.Scalar, weights, future, -math.inf)
    hidden = None
    if mask is not None:
        weights, hidden = _masked(module, node, weights, mask)
    weights = call(graph, node, _aten.softmax.int, weights, -1)
    result = call(graph, node, _aten.matmul.default, weights, value)
    if hidden is not None:
        # torch gives zeros where a row may look at nothing; behind the product, so that what runtimes
        # recognise stays together
        blind = call(graph, node, _aten.all.dim, hidden, -1, True)
        result = call(graph, node, _aten.masked_fill.Scalar, result, blind, 0.0)
    return result


def _masked(
    module: fx.GraphModule, node: fx.Node, weights: fx.Node, mask: fx.Node
) -> tuple[fx.Node, fx.Node | None]:
    """Weights behind a mask, finite wherever some row may look at nothing; and what is hidden then, or None."""
    graph, boolean = module.graph, mask.meta["val"].dtype == torch.bool
    least = torch.finfo(node.meta["val"].dtype).min / 2
    if is_static(mask):
        known = evaluate(module, mask)
        seen = known if boolean else known > -math.inf
        blind = not bool(seen.any(-1).all())
    else:
        blind = True  # for all that is known
    hidden = None
    if boolean:
        hidden = call(graph, node, _aten.logical_not.default, mask)
        weights = call(graph, node, _aten.masked_fill.Scalar, weights, hidden, least)
    elif blind:
        hidden = call(graph, node, _aten.eq.Scalar, mask, -math.inf)
        mask = call(graph, node, _aten.clamp.default, mask, least)
    if not boolean:
        weights = call(graph, node, _aten.add.Tensor, weights, mask)
    return weights, hidden if blind else None


def _repeated(graph: fx.Graph, node: fx.Node, part: Any, query: fx.Node) -> Any:
    """Keys or values with each head as often as query heads read it."""
    heads, own = _shape(query)[-3], _shape(part)[-3]
    if heads == own:
        return part
    sizes = [size_of(graph, node, part, dim) for dim in range(len(_shape(part)))]
    wide = call(graph, node, _aten.unsqueeze.default, part, -3)
    wide = call(graph, node, _aten.expand.default, wide, [*sizes[:-2], heads // own, *sizes[-2:]])
    return call(graph, node, _aten.reshape.default, wide, [*sizes[:-3], heads, *sizes[-2:]])


def _shape(node: Any) -> Any:
    return node.meta["val"].shape
