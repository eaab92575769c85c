"""Ops over the positions of images: norms without the image's mean, and resizes that ONNX has not.

onnxruntime's mean over n positions errs by up to n ulps, and a small deviation makes much of it: on a grey image
the norm was off by 1. What is left without that mean has one near zero, whose error is small, and the norm takes
it off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from normfold.errors import ExportError
from normfold.ir.graph import argument, op_name
from normfold.ir.provenance import source_line
from normfold.targets.calls import call

_aten = torch.ops.aten
_FLOAT = 1  # TensorProto's
_ANTIALIASED = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them."""
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset18 as op

    def vector(number: float, size: int, kind: Any) -> Any:
        return op.Constant(value=ir.tensor(np.full(size, number, kind.numpy())))

    def normed(x: Any, rank: int, kind: Any, weight: Any, bias: Any, eps: float) -> Any:
        """InstanceNormalization of (N, C, ...); networks in half precision are not judged that closely."""
        if kind == _FLOAT:
            axes = op.Constant(value_ints=list(range(2, rank)))
            x = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)

    def group_norm(
        x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Any:
        rank, kind = len(x.shape), x.dtype
        one, zero = (vector(number, num_groups, kind) for number in (1, 0))
        if num_groups == x.shape[1] and rank > 2:
            gain, shift = (one if weight is None else weight), (zero if bias is None else bias)
            return normed(x, rank, kind, gain, shift, eps)
        flat = op.Reshape(x, op.Constant(value_ints=[0, num_groups, -1]))
        y = op.Reshape(normed(flat, 3, kind, one, zero, eps), op.Shape(x))
        column = op.Constant(value_ints=[-1, *[1] * (rank - 2)])
        for combine, vectors in ((op.Mul, weight), (op.Add, bias)):
            if vectors is not None:
                y = combine(y, op.Reshape(vectors, column))
        return y

    return {_aten.group_norm.default: group_norm}


def require_resizes(graph: fx.Graph) -> None:
    """torch steps from corner to corner there, but starts at the centre of a pixel, as no Resize does.

    Raises:
        ExportError: an antialiased interpolation with aligned corners.
    """
    for node in graph.nodes:
        if op_name(node) in _ANTIALIASED and argument(node, "align_corners"):
            raise ExportError(
                "antialiased interpolation with `align_corners=True` has no form in ONNX",
                where=source_line(node) or node.name,
                hint="interpolate with `align_corners=False`; `--export pt2` keeps it as it is",
            )


def write_group_norms(graph: fx.Graph) -> int:
    """Write instance norms as group norms of one channel a group, in place; returns how many."""
    found = [
        node
        for node in graph.nodes
        if node.target is _aten.instance_norm.default
        and argument(node, "use_input_stats")
        and isinstance(node.meta["val"].shape[1], int)
    ]
    for node in found:
        x, weight, bias = node.args[:3]
        with graph.inserting_before(node):
            channels, eps = x.meta["val"].shape[1], argument(node, "eps")
            result = call(graph, node, _aten.group_norm.default, x, channels, weight, bias, eps)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(found)
