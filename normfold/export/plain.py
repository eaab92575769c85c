"""Ops that are better written by us than by the exporter: attention below opset 23, pooling, norms.

torch's translation of attention computes the shapes of a transpose at run time (fourteen ops for each) and
scales both operands. ``softmax((q * s) @ k^T) @ v`` is the same function: a runtime recognises it, a person can
read it, and ``s`` still comes before the product, so that half precision overflows no earlier. Its global
average pooling of a channels-last tensor restores the memory format by a gather over all elements: a mean is
enough. A frozen batch norm has a translation only under its functional name, for which the exporter would trace
the whole graph again.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from normfold.graph.graph import argument
from normfold.graph.provenance import copy_provenance

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_POOLS = {
    _aten.adaptive_avg_pool1d.default: 1,
    _aten.adaptive_avg_pool2d.default: 2,
    _aten.adaptive_avg_pool3d.default: 3,
}


def write_attention(graph: fx.Graph) -> int:
    """Expand every plain attention of ``graph`` in place; returns how many. Others are left to the exporter."""
    plain = [node for node in graph.nodes if node.target is _ATTENTION and _is_plain(node)]
    for node in plain:
        query, key, value = node.args[:3]
        scale = argument(node, "scale")
        if scale is None:
            scale = 1 / math.sqrt(_width(node))
        mask = argument(node, "attn_mask")
        with graph.inserting_before(node):
            scaled = _call(graph, node, _aten.mul.Tensor, query, scale)
            turned = _call(graph, node, _aten.transpose.int, key, -2, -1)
            weights = _call(graph, node, _aten.matmul.default, scaled, turned)
            if mask is not None:
                weights = _call(graph, node, _aten.add.Tensor, weights, mask)
            weights = _call(graph, node, _aten.softmax.int, weights, -1)
            result = _call(graph, node, _aten.matmul.default, weights, value)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(plain)


def write_global_pools(graph: fx.Graph) -> int:
    """Turn adaptive average pooling to size 1 into a mean, in place; returns how many."""
    pools = [
        node
        for node in graph.nodes
        if node.target in _POOLS and all(size == 1 for size in node.args[1])
    ]
    for node in pools:
        axes = [-1, -2, -3][: _POOLS[node.target]]
        with graph.inserting_before(node):
            result = _call(graph, node, _aten.mean.dim, node.args[0], axes, True)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(pools)


def write_batch_norms(graph: fx.Graph) -> int:
    """Give every batch norm with frozen statistics its functional name, in place; returns how many."""
    norms = [node for node in graph.nodes if node.target is _aten.batch_norm.default]
    norms = [node for node in norms if argument(node, "training") is False]
    for node in norms:
        *tensors, _, momentum, epsilon = node.args[:8]
        target = _aten._native_batch_norm_legit_no_training.default
        with graph.inserting_before(node):
            parts = _call(graph, node, target, *tensors, momentum, epsilon)
            result = _call(graph, node, operator.getitem, parts, 0)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(norms)


def write_rms_norms(graph: fx.Graph, native: bool) -> int:
    """Give every RMS norm without a gain one of ones, in place, as ONNX wants it; returns how many norms.

    The exporter would make the ones at run time, from the shape of the input. Where the opset has no
    RMSNormalization (``native`` False), ``x / sqrt(mean(x ** 2) + eps) * gain`` is written out: the form that
    onnxruntime fuses.
    """
    norms = [node for node in graph.nodes if node.target is _aten.rms_norm.default]
    for node in norms:
        sizes, eps = list(argument(node, "normalized_shape")), argument(node, "eps")
        x, gain, dtype = node.args[0], argument(node, "weight"), node.meta["val"].dtype
        with graph.inserting_before(node):
            if gain is None:
                gain = graph.call_function(_aten.full.default, (sizes, 1.0), {"dtype": dtype})
                with node.meta["val"].fake_mode:
                    gain.meta["val"] = torch.ones(sizes, dtype=dtype)
                copy_provenance(node, gain)
            if native:
                node.args, node.kwargs = (x, sizes, gain, eps), {}
                continue
            eps = torch.finfo(dtype).eps if eps is None else eps
            axes = list(range(-len(sizes), 0))
            half = dtype in (torch.float16, torch.bfloat16)  # whose squares overflow, or are coarse
            if half:
                x = _call(graph, node, _aten.to.dtype, x, torch.float32)
            square = _call(graph, node, _aten.pow.Tensor_Scalar, x, 2)
            mean = _call(graph, node, _aten.mean.dim, square, axes, True)
            root = _call(graph, node, _aten.sqrt.default, _call(graph, node, _ADD, mean, eps))
            unit = _call(graph, node, _aten.div.Tensor, x, root)
            if half:
                unit = _call(graph, node, _aten.to.dtype, unit, dtype)
            result = _call(graph, node, _aten.mul.Tensor, unit, gain)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(norms)


def _is_plain(node: fx.Node) -> bool:
    """True for attention without dropout, causal flag, boolean mask, grouped heads or a symbolic width."""
    operands = node.args[:3]
    if not all(isinstance(x, fx.Node) and isinstance(x.meta.get("val"), Tensor) for x in operands):
        return False
    mask = argument(node, "attn_mask")
    dtype = node.meta["val"].dtype
    if mask is not None and (not isinstance(mask, fx.Node) or mask.meta["val"].dtype != dtype):
        return False
    flags = (
        argument(node, "is_causal") or argument(node, "enable_gqa") or argument(node, "dropout_p")
    )
    return not flags and isinstance(_width(node), int)


def _width(node: fx.Node) -> Any:
    query = node.args[0]
    assert isinstance(query, fx.Node)
    return query.meta["val"].shape[-1]


def _call(graph: fx.Graph, origin: fx.Node, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda source: source.meta["val"])
    with origin.meta["val"].fake_mode, torch.no_grad():
        node.meta["val"] = target(*values)
    copy_provenance(origin, node)
    return node
