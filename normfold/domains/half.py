"""Half precision as a device computes it: operands in half, sums in float32, every result rounded to its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir.evaluation import Domain
from normfold.ir.graph import argument
from normfold.ops.reads import is_tuple
from normfold.ops.squares import summed
from normfold.ops.table import norm_of

_HALF = (torch.float16, torch.bfloat16)


class Rounded(Domain):
    """Ops in half precision compute in float32 and round their results.

    So does a GPU, whose products and sums accumulate in float32. The CPU's own half-precision kernels take up
    to a hundred times as long.
    """

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        half = any(
            isinstance(x, Tensor) and x.dtype in _HALF for x in pytree.tree_leaves((args, kwargs))
        )
        if not half or "val" not in node.meta:
            return super().run(node, args, kwargs)
        args, kwargs = pytree.tree_map(_in_float32, (args, kwargs))
        results, tree = pytree.tree_flatten(super().run(node, args, kwargs))
        kinds = pytree.tree_leaves(node.meta["val"])
        rounded = [
            result.to(kind.dtype) if isinstance(result, Tensor) else result
            for result, kind in zip(results, kinds, strict=True)
        ]
        return pytree.tree_unflatten(rounded, tree)


def _in_float32(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALF else value
    half = isinstance(value, Tensor) and value.dtype in _HALF
    return value.float() if half else value


class Strict(Rounded):
    """Every square is rounded to its type as well: norms in half precision go step by step.

    torch's own kernels on the CPU sum the squares of a half-precision norm in float32, and so does onnxruntime:
    what overflows on a GPU passes there.
    """

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        x = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if not isinstance(x, Tensor) or x.dtype not in _HALF:
            return super().call(node, values)
        found = summed(node, x)
        if found is None:
            return super().call(node, values)
        centred, dims = found
        squares = centred * centred
        if norm_of(node, "shape", "channels") and not is_tuple(node):
            power = squares.mean(dims, keepdim=True)
            return _normalised(node, values, centred, power, x.shape)
        lost = torch.isinf(squares).sum(dims) > 0
        leaves, tree = pytree.tree_flatten(super().call(node, values))
        leaves[0] = leaves[0].masked_fill(lost.reshape(leaves[0].shape), torch.inf)
        return pytree.tree_unflatten(leaves, tree)


def _normalised(
    node: fx.Node, values: Mapping[fx.Node, Any], x: Tensor, power: Tensor, shape: torch.Size
) -> Tensor:
    eps = argument(node, "eps")
    power = power + (torch.finfo(x.dtype).eps if eps is None else eps)
    x = (x / power.sqrt()).reshape(shape)
    per_channel = norm_of(node, "channels") is not None
    for part, apply in (("weight", torch.mul), ("bias", torch.add)):
        source = argument(node, part)  # an RMS norm has no bias
        if source is not None:
            value = values[source]
            x = apply(x, value.reshape(-1, *[1] * (len(shape) - 2)) if per_channel else value)
    return x
