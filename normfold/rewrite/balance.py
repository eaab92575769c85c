"""A positive scale per channel, moved from a tensor into the weights that read it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.expressions import evaluate
from normfold.ir.graph import shape_of
from normfold.ops import layout
from normfold.ops.linear import Linear
from normfold.rewrite.absorb import Edit, linear_weight
from normfold.rewrite.flow import Coefficient, Flow, Vector, along
from normfold.rewrite.rewriter import Rewriter
from normfold.rewrite.transport import Transport


def largest(graph: Graph, linear: Linear, written: bool) -> Tensor:
    """Largest |weight| of every output feature (``written``) or of every input feature."""
    weight: Tensor = evaluate(graph.module, linear_weight(linear)).abs()
    axis = linear.out_axis if written else linear.in_axis
    assert axis is not None
    if axis == 0:
        return weight.flatten(1).amax(1)
    split = weight.reshape(
        linear.groups, -1, *weight.shape[1:]
    )  # the group is the slow part of axis 0
    return split.transpose(1, 2).flatten(2).amax(2).flatten()


def largest_read(graph: Graph, node: fx.Node, dim: int) -> Tensor:
    """Largest |weight| that reads each channel of a tensor along ``dim``; 0 where none does.

    Raises:
        Blocked: a reader can neither take a positive scale into its weight nor pass it on.
        LayoutError: the channels cannot be followed.
    """
    width = shape_of(node)[dim]
    transport = Transport(graph, padding="scale-only")
    transport.push(node, Flow(coefficient(torch.ones(width, dtype=torch.float64), node, dim)))
    found = torch.zeros(width, dtype=torch.float64)
    for reader, flow in transport.absorbed:
        assert flow.scale is not None and reader.in_dim is not None
        size = shape_of(reader.data)[reader.in_dim]
        where = along(flow.scale, reader.in_dim, size, reader.node)
        values = largest(graph, reader, written=False).masked_fill(where < 0, 0.0)
        found.scatter_reduce_(0, where.clamp_min(0), values, "amax")
    return found


def into_readers(graph: Graph, node: fx.Node, dim: int, factors: Tensor) -> list[Edit]:
    """Edits after which every reader computes of x what it computed of ``x * factors``."""
    flow = Flow(coefficient(factors, node, dim))
    return Transport(graph, padding="scale-only").push(node, flow)


def coefficient(values: Tensor, node: fx.Node, dim: int) -> Coefficient:
    """Numbers along one axis of a tensor, as a pass moves them; stored when they are needed."""

    def build(rewriter: Rewriter) -> fx.Node:
        return rewriter.constant(values, "scale")

    ids = layout.channel(len(shape_of(node)), dim, values.numel())
    return Coefficient(Vector(lambda: values, build), ids)
