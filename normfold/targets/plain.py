"""Ops that are better written by us than by the exporter: pooling, norms, casts, activations.

torch's global average pooling of a channels-last tensor restores the memory format by a gather over all
elements: a mean is enough. A frozen batch norm has a translation only under its functional name, for which the
exporter would trace the whole graph again.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from normfold.graph.graph import argument
from normfold.graph.provenance import copy_provenance
from normfold.targets.calls import call

_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_HALF = (torch.float16, torch.bfloat16)
_CLAMPS = {
    _aten.clamp_min.default: (_aten.maximum.default, "min"),
    _aten.clamp_max.default: (_aten.minimum.default, "max"),
}
_POOLS = {
    _aten.adaptive_avg_pool1d.default: 1,
    _aten.adaptive_avg_pool2d.default: 2,
    _aten.adaptive_avg_pool3d.default: 3,
}


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
            result = call(graph, node, _aten.mean.dim, node.args[0], axes, True)
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
            parts = call(graph, node, target, *tensors, momentum, epsilon)
            result = call(graph, node, operator.getitem, parts, 0)
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
                gain = _full(graph, node, sizes, 1.0)
            if native:
                node.args, node.kwargs = (x, sizes, gain, eps), {}
                continue
            eps = torch.finfo(dtype).eps if eps is None else eps
            axes = list(range(-len(sizes), 0))
            half = dtype in _HALF  # whose squares overflow, or are coarse
            if half:
                x = call(graph, node, _aten.to.dtype, x, torch.float32)
            square = call(graph, node, _aten.pow.Tensor_Scalar, x, 2)
            mean = call(graph, node, _aten.mean.dim, square, axes, True)
            root = call(graph, node, _aten.sqrt.default, call(graph, node, _ADD, mean, eps))
            unit = call(graph, node, _aten.div.Tensor, x, root)
            if half:
                unit = call(graph, node, _aten.to.dtype, unit, dtype)
            result = call(graph, node, _aten.mul.Tensor, unit, gain)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(norms)


def write_casts(graph: fx.Graph) -> int:
    """Give every cast its functional name, the only one with a translation, in place; returns how many."""
    casts = [node for node in graph.nodes if node.target is _aten.to.dtype]
    for node in casts:
        dtype = argument(node, "dtype")
        node.target, node.args, node.kwargs = (
            _aten._to_copy.default,
            node.args[:1],
            {"dtype": dtype},
        )
    return len(casts)


def write_activations(graph: fx.Graph) -> int:
    """Run hardswish and mish in bfloat16 in float32, in place; returns how many.

    TensorRT takes their ops in other types only.
    """
    found = [
        node
        for node in graph.nodes
        if node.target in (_aten.hardswish.default, _aten.mish.default)
        and node.meta["val"].dtype == torch.bfloat16
    ]
    for node in found:
        with graph.inserting_before(node):
            wide = call(graph, node, _aten.to.dtype, node.args[0], torch.float32)
            wide = call(graph, node, node.target, wide)
            result = call(graph, node, _aten.to.dtype, wide, torch.bfloat16)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def write_clamps(graph: fx.Graph) -> int:
    """Write clamp_min and clamp_max in half precision as a maximum and a minimum, in place; returns how many.

    They would be Clip ops with one bound. TensorRT fills in the other in float32, and prints to stdout that it
    does not fit.
    """
    found = [
        node for node in graph.nodes if node.target in _CLAMPS and node.meta["val"].dtype in _HALF
    ]
    for node in found:
        target, bound = _CLAMPS[node.target]
        with graph.inserting_before(node):
            number = _full(graph, node, [], argument(node, bound))
            result = call(graph, node, target, node.args[0], number)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def _full(graph: fx.Graph, origin: fx.Node, sizes: list[int], number: float) -> fx.Node:
    """A constant of the type of ``origin``."""
    dtype = origin.meta["val"].dtype
    node = graph.call_function(_aten.full.default, (sizes, number), {"dtype": dtype})
    with origin.meta["val"].fake_mode:
        node.meta["val"] = torch.full(sizes, number, dtype=dtype)
    copy_provenance(origin, node)
    return node
