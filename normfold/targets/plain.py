"""Ops that are better written by us than by the exporter: pooling, norms, casts, activations, booleans.

torch's global average pooling of a channels-last tensor restores the memory format by a gather over all
elements: a mean is enough. A frozen batch norm has a translation only under its functional name, for which the
exporter would trace the whole graph again.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from normfold.errors import ExportError
from normfold.ir.graph import argument, is_symbolic, op_name
from normfold.ir.provenance import source_line
from normfold.ops.reads import choice_of
from normfold.targets.calls import call, size_of

_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_HALF = (torch.float16, torch.bfloat16)
_NO_WHERE = (torch.bool, torch.int16)
_CLAMPS = {
    _aten.clamp_min.default: (_aten.maximum.default, "min"),
    _aten.clamp_max.default: (_aten.minimum.default, "max"),
}
_POOLS = {
    _aten.adaptive_avg_pool1d.default: 1,
    _aten.adaptive_avg_pool2d.default: 2,
    _aten.adaptive_avg_pool3d.default: 3,
}
_MAXIMA = {
    _aten.adaptive_max_pool1d.default: 1,
    _aten.adaptive_max_pool2d.default: 2,
    _aten.adaptive_max_pool3d.default: 3,
}


def write_global_pools(graph: fx.Graph) -> int:
    """Write adaptive pooling to size 1, or over axes whose size is free, as plain ops; returns how many.

    An average to size 1 is a mean. To another size it is a product with a matrix for each axis: the exporter pools
    by windows, whose size it would take from the example inputs.

    Raises:
        ExportError: a maximum over parts of an axis whose size is free.
    """
    _require_fixed_maxima(graph)
    pools = [
        node
        for node in graph.nodes
        if node.target in _POOLS
        and (all(size == 1 for size in node.args[1]) or _free_axes(node, _POOLS[node.target]))
    ]
    for node in pools:
        with graph.inserting_before(node):
            result = _pooled(graph, node, node.args[1])
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(pools)


def _require_fixed_maxima(graph: fx.Graph) -> None:
    for node in graph.nodes:
        free = _free_axes(node, _MAXIMA[node.target]) if node.target in _MAXIMA else []
        if any(node.args[1][axis] != 1 for axis in free):
            name = op_name(node)
            raise ExportError(
                f"`{name}` over an axis whose size is free has no form in ONNX",
                where=source_line(node) or f"`{node.name}`",
                found=f"it takes maxima of {list(node.args[1])} parts",
                hint="leave out `--dynamic` for the axes that it pools",
            )


def _free_axes(node: fx.Node, count: int) -> list[int]:
    """Of the last axes those that are pooled and whose size is a symbol, from behind."""
    sizes = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    wanted: Any = node.args[1]
    return [
        axis
        for axis in range(-1, -count - 1, -1)
        if is_symbolic(sizes[axis]) and not _is_size(wanted[axis], sizes[axis])
    ]


def _is_size(wanted: int | fx.Node, size: Any) -> bool:
    """True for pooling to the size that there is."""
    value = wanted.meta["val"] if isinstance(wanted, fx.Node) else wanted
    return str(value) == str(size)


def _pooled(graph: fx.Graph, node: fx.Node, sizes: Any) -> fx.Node:
    """The averages of ``sizes`` parts of the last axes."""
    result: Any = node.args[0]
    shape = result.meta["val"].shape
    axes = range(-1, -len(sizes) - 1, -1)
    if single := [axis for axis in axes if sizes[axis] == 1]:
        result = call(graph, node, _aten.mean.dim, result, single, True)
    for axis in axes:
        if sizes[axis] == 1 or _is_size(sizes[axis], shape[axis]):
            continue
        matrix = _parts(graph, node, sizes[axis], axis)
        turned = axis != -1
        if turned:
            result = call(graph, node, _aten.transpose.int, result, axis, -1)
        result = call(graph, node, _aten.matmul.default, result, matrix)
        if turned:
            result = call(graph, node, _aten.transpose.int, result, axis, -1)
    return result  # type: ignore[no-any-return]


def _parts(graph: fx.Graph, node: fx.Node, parts: int | fx.Node, axis: int) -> fx.Node:
    """The matrix (size, parts) that averages: part i of p has the elements k of n for which
    floor(i n / p) <= k < ceil((i + 1) n / p), that is i n < (k + 1) p and k p < (i + 1) n."""

    def make(target: Any, *args: Any) -> fx.Node:
        return call(graph, node, target, *args)

    size = size_of(graph, node, node.args[0], axis)
    place = make(_aten.unsqueeze.default, make(_aten.arange.default, size), 1)
    part = make(_aten.arange.default, parts)
    begin = make(_aten.mul.Tensor, part, size)
    end = make(_aten.mul.Tensor, make(_ADD, part, 1), size)
    behind = make(_aten.lt.Tensor, begin, make(_aten.mul.Tensor, make(_ADD, place, 1), parts))
    before = make(_aten.lt.Tensor, make(_aten.mul.Tensor, place, parts), end)
    inside = make(_aten.logical_and.default, behind, before)
    ones = make(_aten.to.dtype, inside, node.meta["val"].dtype)
    return make(_aten.div.Tensor, ones, make(_aten.sum.dim_IntList, ones, [0], True))


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


def write_booleans(graph: fx.Graph) -> int:
    """Write what onnxruntime has no kernel for in its type, in place; returns how many.

    A choice of booleans is (mask and x) or (not mask and y), that of 16-bit integers is made in 32 bits, and a sum
    of booleans is an or.
    """
    found = [node for node in graph.nodes if _has_no_kernel(node)]
    for node in found:
        with graph.inserting_before(node):
            result = _written(graph, node)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)


def _has_no_kernel(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    if node.target is _ADD:
        return value.dtype == torch.bool
    return value.dtype in _NO_WHERE and choice_of(node) is not None


def _written(graph: fx.Graph, node: fx.Node) -> fx.Node:
    choice = choice_of(node)
    pair = node.args[:2] if choice is None else (choice.chosen, choice.other)
    chosen, other = (
        part if isinstance(part, fx.Node) else _full(graph, node, [], part) for part in pair
    )
    if choice is None:
        return call(graph, node, _aten.logical_or.default, chosen, other)
    if node.meta["val"].dtype != torch.bool:
        wide = [call(graph, node, _aten.to.dtype, part, torch.int32) for part in (chosen, other)]
        result = call(graph, node, _aten.where.self, choice.mask, *wide)
        return call(graph, node, _aten.to.dtype, result, node.meta["val"].dtype)
    hidden = call(graph, node, _aten.logical_not.default, choice.mask)
    chosen = call(graph, node, _aten.logical_and.default, choice.mask, chosen)
    other = call(graph, node, _aten.logical_and.default, hidden, other)
    return call(graph, node, _aten.logical_or.default, chosen, other)


def _full(graph: fx.Graph, origin: fx.Node, sizes: list[int], number: Any) -> fx.Node:
    """A constant of the type of ``origin``."""
    return call(graph, origin, _aten.full.default, sizes, number, dtype=origin.meta["val"].dtype)
