"""Ops that sum squares: in half precision these overflow inside, where no result shows it."""

from __future__ import annotations

import math

from torch import Tensor, fx

from normfold.ir.graph import argument, op_name
from normfold.ops.table import norm_of

_SPREADS = {"var", "std", "var_mean", "std_mean"}
_LENGTHS = {"linalg_vector_norm": "ord", "norm": "p"}


def summed(node: fx.Node, x: Tensor) -> tuple[Tensor, list[int]] | None:
    """What the op squares, and the axes that it sums over; None for an op that sums no squares.

    Args:
        node: a norm, a variance, a standard deviation, or the length of a vector.
        x: its first operand. What comes back is centred where the op centres it, in the type of ``x``.
    """
    name = op_name(node)
    if norm_of(node, "shape"):
        dims = list(range(-len(argument(node, "normalized_shape")), 0))
    elif name == "group_norm":
        x, dims = x.reshape(x.shape[0], int(argument(node, "num_groups")), -1), [-1]
    elif name == "instance_norm" and argument(node, "use_input_stats"):
        x, dims = x.reshape(*x.shape[:2], -1), [-1]
    elif name in _SPREADS or (name in _LENGTHS and argument(node, _LENGTHS[name], 2) in (None, 2)):
        given = argument(node, "dim")
        dims = [given] if isinstance(given, int) else list(given or range(x.dim()))
    else:
        return None
    if "rms" not in name and name not in _LENGTHS:
        x = x - x.mean(dims, keepdim=True)
    return x, dims


def count(x: Tensor, dims: list[int]) -> int:
    """How many elements are summed."""
    return math.prod(x.shape[dim] for dim in dims)
