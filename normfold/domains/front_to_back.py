"""Weights rounded front to back: each by what it reads of the weights in front of it that are rounded already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.batches import Batches, Parts
from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator
from normfold.ir.feedback import fed_back
from normfold.ir.grids import spread
from normfold.ops.linear import Linear

Oriented = tuple[fx.Node, int | None]


def rounded_by_feedback(
    graph: Graph, linears: Iterable[Linear], samples: Sequence[Sequence[Any]], bits: int, block: int
) -> dict[Oriented, tuple[Tensor, Tensor]]:
    """The integers (outputs, inputs) and scales (outputs, blocks) of each weight, as `fed_back` gives them.

    Keys are weights with the axis of their inputs. A weight that several ops read is rounded for the first of
    them. Memory: the activations of all samples at one op, and one matrix of moments.

    Args:
        linears: products of rows with a matrix, each of which reads features along its last axis.
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
        matrix = weight if linear.in_axis == 1 else weight.t()
        key = linear.weight, linear.in_axis
        if key not in self.found:
            second = _second_moments(values[linear.data])
            self.found[key] = fed_back(matrix, second, self.bits, self.block)
        steps, scale = self.found[key]
        rounded = (steps * spread(scale, steps, 1, self.block)).to(weight.dtype)
        if linear.in_axis != 1:
            rounded = rounded.t()
        return super().call(node, {**values, linear.weight: rounded})


def _second_moments(data: Any) -> Tensor:
    """The sum of x x' over all rows of all batches, scaled by their number."""
    parts = data.values if isinstance(data, Parts) else (data,)
    total: Any = 0
    for part in pytree.tree_leaves(list(parts)):
        rows = part.reshape(-1, part.shape[-1]).float()
        total = total + (rows.t() @ rows) / len(rows)
    return torch.as_tensor(total) / len(parts)
