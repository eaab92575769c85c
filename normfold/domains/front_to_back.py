"""Weights rounded front to back: each by what it reads of the weights in front of it that are rounded already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.batches import Batches, Parts
from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator
from normfold.ir.feedback import fed_back
from normfold.ir.graph import argument, shape_of
from normfold.ir.grids import spread
from normfold.ops.linear import Linear

Oriented = tuple[fx.Node, int | None]
_WINDOWS = 4096  # of each image that moments are taken of


def rounded_by_feedback(
    graph: Graph, linears: Iterable[Linear], samples: Sequence[Sequence[Any]], bits: int, block: int
) -> dict[Oriented, tuple[Tensor, Tensor]]:
    """The integers (outputs, inputs) and scales (outputs, blocks) of each weight, as `fed_back` gives them; the
    inputs of a convolution are those of a window, channel by channel.

    Keys are weights with the axis of their inputs. A weight that several ops read is rounded for the first of
    them. Memory: the activations of all samples at one op, and one matrix of moments.

    Args:
        linears: products of rows with a matrix, each of which reads features along its last axis, and convolutions
            (`has_windows`).
        samples: flat inputs, one tuple for each batch.
    """
    wanted = {linear.node: linear for linear in linears}
    domain = _FrontToBack(wanted, bits, block)
    Evaluator(graph.module, domain)(*zip(*samples, strict=True))
    return domain.found


class _FrontToBack(Batches):
    """Batches through a graph whose weights are rounded as they are met."""

    def __init__(self, wanted: Mapping[fx.Node, Linear], bits: int, block: int) -> None:
        super().__init__(Domain())
        self.wanted = dict(wanted)
        self.bits, self.block = bits, block
        self.found: dict[Oriented, tuple[Tensor, Tensor]] = {}

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if not self.wanted:
            return None  # nothing behind it is looked at
        linear = self.wanted.pop(node, None)
        if linear is None:
            return super().call(node, values)
        weight = values[linear.weight]
        key = linear.weight, linear.in_axis
        if key not in self.found:
            second = _second_moments(values[linear.data], linear)
            steps, scale = fed_back(_matrices(weight, linear), second, self.bits, self.block)
            self.found[key] = steps.flatten(0, 1), scale.flatten(0, 1)
        steps, scale = self.found[key]
        rounded = steps * (spread(scale, steps, 1, self.block) if self.block else scale)
        rounded = rounded.to(weight.dtype)
        rounded = (
            rounded.reshape(weight.shape) if linear.kernel or linear.in_axis == 1 else rounded.t()
        )
        return super().call(node, {**values, linear.weight: rounded})


def has_windows(linear: Linear) -> bool:
    """True for a convolution along one or two axes whose windows can be laid out as rows."""
    pads = argument(linear.node, "padding", 0)
    return linear.kernel in (1, 2) and not linear.transposed and not isinstance(pads, str)


def _matrices(weight: Tensor, linear: Linear) -> Tensor:
    """A weight as (groups, outputs, inputs)."""
    if linear.kernel:
        return weight.reshape(linear.groups, len(weight) // linear.groups, -1)
    return (weight if linear.in_axis == 1 else weight.t())[None]


def _second_moments(data: Any, linear: Linear) -> Tensor:
    """The sum of x x' over all rows of all batches, scaled by their number: (groups, inputs, inputs)."""
    parts = data.values if isinstance(data, Parts) else (data,)
    total: Any = 0
    for part in pytree.tree_leaves(list(parts)):
        # windows of one image at a time: they are many times as large as it
        for piece in part.split(1) if linear.kernel else (part,):
            rows = (
                _windows(piece.float(), linear)
                if linear.kernel
                else piece.reshape(1, -1, piece.shape[-1]).float()
            )
            total = total + (rows.transpose(1, 2) @ rows) / rows.shape[1] / len(part)
    return torch.as_tensor(total) / len(parts)


def _windows(image: Tensor, linear: Linear) -> Tensor:
    """What a convolution reads of (1, C, *spatial), as (groups, windows, inputs): `_WINDOWS` of them at most."""
    sizes = list(shape_of(linear.weight)[2:])
    how = [
        _pair(argument(linear.node, name, usual))
        for name, usual in (("dilation", 1), ("padding", 0), ("stride", 1))
    ]
    if linear.kernel == 1:
        image, sizes = image[..., None], [*sizes, 1]
        how = [(how[0][0], 1), (how[1][0], 0), (how[2][0], 1)]
    found: Tensor = F.unfold(image, tuple(sizes), *how)[0].unflatten(0, (linear.groups, -1))
    return found[:, :, :: -(-found.shape[2] // _WINDOWS)].transpose(1, 2)


def _pair(value: Any) -> tuple[int, int]:
    """One or two numbers as two."""
    both = [value] if isinstance(value, int) else list(value)
    return int(both[0]), int(both[-1])
