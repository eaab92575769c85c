"""How large the values of a graph become: what decides whether half precision can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.graph.graph import argument, op_name

# Below it a value stands for minus infinity: masks are filled with the least number of their dtype, or -1e9.
MASKED = -1e8

_NORMS = {"layer_norm", "rms_norm", "group_norm", "instance_norm"}
# they sum squares as well, and divide by nothing
_UNSCALED = {"linalg_vector_norm", "norm", "var", "std", "var_mean", "std_mean"}


@dataclass(frozen=True)
class Extent:
    """What the elements of one value were at most, over every input that was tried.

    ``largest`` is the largest finite magnitude, without those that stand for minus infinity; ``masked`` tells
    that there were such. For a norm ``square`` is the largest square that it sums, and ``power`` the least
    mean of squares, eps included, that it divides by.
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
    observer = _Observer(module)
    for leaves in inputs:
        with torch.no_grad():
            observer.run(*leaves, enable_io_processing=False)
    return observer.extents


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extents: dict[fx.Node, Extent] = {}

    def run_node(self, n: fx.Node) -> Any:
        args: Any = self.fetch_args_kwargs_from_env(n)[0]
        result = super().run_node(n)
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        found = [_extent(tensor) for tensor in tensors if tensor.is_floating_point()]
        if found and n.op == "call_function":
            found.append(_within(n, args))
        for extent in found:
            self.extents[n] = self.extents.get(n, Extent()) | extent
        return result


def _extent(tensor: Tensor) -> Extent:
    if not tensor.numel():
        return Extent()
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    if max(-low, high) < -MASKED:  # the usual case, in one pass
        return Extent(max(-low, high))
    real = tensor[torch.isfinite(tensor) & (tensor > MASKED)]
    largest = float(real.abs().max()) if real.numel() else 0.0
    return Extent(largest, masked=bool((tensor <= MASKED).any()))


def _within(node: fx.Node, args: Sequence[Any]) -> Extent:
    """The squares that an op sums before it gives a result of another size."""
    name = op_name(node)
    if name in _UNSCALED:
        largest = float(args[0].detach().abs().max()) if args[0].numel() else 0.0
        return Extent(square=largest**2)
    if name not in _NORMS or not args[0].numel():
        return Extent()
    x, dims = args[0], [-1]
    match name:
        case "group_norm":
            x = x.reshape(x.shape[0], int(argument(node, "num_groups")), -1)
        case "instance_norm":
            x = x.reshape(*x.shape[:2], -1)
        case _:
            dims = list(range(-len(argument(node, "normalized_shape")), 0))
    if "rms" not in name:
        x = x - x.mean(dims, keepdim=True)
    eps = argument(node, "eps")
    eps = torch.finfo(x.dtype).eps if eps is None else float(eps)
    squares = x.double() ** 2
    return Extent(square=float(squares.max()), power=float(squares.mean(dims).min()) + eps)
