"""Linear ops: products with a parameter expression as weight, all seen in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, op_name, shape_of


@dataclass(frozen=True)
class Linear:
    """An op that is linear in one activation, with a parameter expression as weight.

    ``in_dim`` and ``out_dim`` are the feature axes of the activation and the result (None for embedding's
    input). The weight, seen with ``groups`` split off, has its input features on ``in_axis`` and its
    output features on ``out_axis``; the group index is the slow part of both. ``kernel`` counts spatial axes.
    """

    node: fx.Node
    data: fx.Node
    weight: fx.Node
    weight_position: int
    bias_position: int | None
    in_dim: int | None
    out_dim: int
    in_axis: int | None
    out_axis: int
    groups: int = 1
    kernel: int = 0
    transposed: bool = False

    @property
    def bias(self) -> fx.Node | None:
        if self.bias_position is None:
            return None
        return argument(self.node, "bias" if op_name(self.node) != "addmm" else "self")  # type: ignore[no-any-return]

    @property
    def takes_bias(self) -> bool:
        """True where a bias is an argument, or the weight can take it (rows of a table), or it can become one of a
        linear, as that of a product with a matrix on the right can."""
        return self.bias_position is not None or self.in_dim is None or self.weight_position == 1

    @property
    def out_features(self) -> int:
        return shape_of(self.node)[self.out_dim]


def linear_of(node: fx.Node) -> Linear | None:
    """View of a linear op with a static weight, or None if ``node`` is not one."""
    name = op_name(node)
    args = node.args
    if name == "linear" and is_static(args[1]) and _bias_ok(node, 2):
        rank = len(shape_of(node))
        return Linear(node, args[0], args[1], 1, 2, rank - 1, rank - 1, 1, 0)  # type: ignore[arg-type]
    if name == "addmm" and is_static(args[2]) and _is_vector(args[0]) and not node.kwargs:
        return Linear(node, args[1], args[2], 2, 0, 1, 1, 0, 1)  # type: ignore[arg-type]
    if (
        name in ("matmul", "mm", "bmm")
        and isinstance(args[0], fx.Node)
        and isinstance(args[1], fx.Node)
    ):
        return _matmul(node, args[0], args[1])
    if name == "embedding" and is_static(args[0]):
        rank = len(shape_of(node))
        return Linear(node, args[1], args[0], 0, None, None, rank - 1, None, 1)  # type: ignore[arg-type]
    if name.startswith("conv") and is_static(args[1]) and _bias_ok(node, 2):
        return _convolution(node, name)
    return None


def _bias_ok(node: fx.Node, position: int) -> bool:
    return (
        len(node.args) <= position or node.args[position] is None or is_static(node.args[position])
    )


def _is_vector(value: Any) -> bool:
    return is_static(value) and len(shape_of(value)) == 1


def _matmul(node: fx.Node, left: fx.Node, right: fx.Node) -> Linear | None:
    rank = len(shape_of(node))
    if is_static(right) and not is_static(left) and len(shape_of(right)) == 2:
        return Linear(node, left, right, 1, None, rank - 1, rank - 1, 0, 1)
    columns = len(shape_of(left)) == 2 and len(shape_of(right)) == rank >= 2
    if is_static(left) and not is_static(right) and columns:
        return Linear(node, right, left, 0, None, rank - 2, rank - 2, 1, 0)
    return None


def _convolution(node: fx.Node, name: str) -> Linear | None:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    kernel = len(shape_of(weight)) - 2
    transposed = "transpose" in name or bool(name == "convolution" and argument(node, "transposed"))
    rank = len(shape_of(node))
    channel = rank - kernel - 1  # unbatched input has no axis 0
    data = node.args[0]
    assert isinstance(data, fx.Node)
    groups = int(argument(node, "groups"))
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    return Linear(
        node, data, weight, 1, 2, channel, channel, in_axis, out_axis, groups, kernel, transposed
    )


def pads_with_zeros(linear: Linear) -> bool:
    """True if a convolution reads zeros beyond its input's border."""
    if not linear.kernel or linear.transposed:
        return False
    padding = argument(linear.node, "padding")
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in shape_of(linear.weight)[2:])
    return any(int(amount) != 0 for amount in padding)


def zero_pad_of(node: fx.Node) -> list[int] | None:
    """The pad list of an explicit zero pad, or None if ``node`` is not one."""
    if op_name(node) not in ("pad", "constant_pad_nd"):
        return None
    if op_name(node) == "pad" and argument(node, "mode") != "constant":
        return None
    if argument(node, "value") not in (None, 0, 0.0):
        return None
    pad = argument(node, "pad")
    return [int(width) for width in pad] if all(isinstance(width, int) for width in pad) else None
