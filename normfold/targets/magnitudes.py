"""How large the values of a graph become: what decides whether half precision can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir.evaluation import Evaluator
from normfold.ir.graph import argument
from normfold.ops.squares import count, summed
from normfold.ops.table import norm_of

# Below it a value stands for minus infinity: masks are filled with the least number of their dtype, or -1e9.
MASKED = -1e8


@dataclass(frozen=True)
class Extent:
    """What the elements of one value were at most, over every input that was tried.

    ``largest`` is the largest finite magnitude, without those that stand for minus infinity; ``masked`` tells
    that there were such. ``square`` is the largest square that the op sums, and ``power`` the least mean of
    squares, eps included, that a norm divides by.
    """

    largest: float = 0.0
    masked: bool = False
    square: float = 0.0
    power: float = float("inf")

    def __or__(self, other: Extent) -> Extent:
        return Extent(
            max(self.largest, other.largest),
            self.masked or other.masked,
            max(self.square, other.square),
            min(self.power, other.power),
        )


def measure(module: fx.GraphModule, inputs: Sequence[Sequence[Any]]) -> dict[fx.Node, Extent]:
    """Extents of every floating value of ``module``, run on each flat tuple of ``inputs`` in its own dtype."""
    extents: dict[fx.Node, Extent] = {}

    def watch(node: fx.Node, value: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        found = [_extent(x) for x in tensors if x.is_floating_point() and x.dtype.itemsize > 1]
        if found and node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
            found.append(_inside(node, run.env[node.args[0]]))
        for extent in found:
            extents[node] = extents.get(node, Extent()) | extent

    run = Evaluator(module, watch=watch)
    for leaves in inputs:
        run(*leaves)
    return extents


def _extent(tensor: Tensor) -> Extent:
    if not tensor.numel():
        return Extent()
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    if max(-low, high) < -MASKED:  # the usual case, in one pass
        return Extent(max(-low, high))
    real = tensor[torch.isfinite(tensor) & (tensor > MASKED)]
    largest = float(real.abs().max()) if real.numel() else 0.0
    return Extent(largest, masked=bool((tensor <= MASKED).any()))


def _inside(node: fx.Node, x: Any) -> Extent:
    """The squares that an op sums before it gives a result of another size."""
    if (
        not isinstance(x, Tensor)
        or not x.is_floating_point()
        or x.dtype.itemsize == 1
        or not x.numel()
    ):
        return Extent()
    found = summed(node, x.float())
    if found is None:
        return Extent()
    x, dims = found
    low, high = (float(bound) for bound in torch.aminmax(x))
    square = max(-low, high) ** 2
    if norm_of(node, "shape", "channels") is None:  # these divide by nothing
        return Extent(square=square)
    eps = argument(node, "eps")
    eps = torch.finfo(node.meta["val"].dtype).eps if eps is None else float(eps)
    lengths = torch.linalg.vector_norm(x, dim=dims, dtype=torch.float64)
    return Extent(square=square, power=float(lengths.min()) ** 2 / count(x, dims) + eps)
