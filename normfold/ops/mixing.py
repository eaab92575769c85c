"""Ops that mix positions but keep features apart: means, pools, upsampling, maxima over other axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.graph import argument, concrete, op_name, shape_of
from normfold.ops.layout import LayoutError
from normfold.ops.reads import operands, producer
from normfold.ops.table import Kind, kind_of


def mix_dims(node: fx.Node, rank: int) -> tuple[list[int], bool]:
    """Axes of the operand that a MIX or MONOTONE op mixes, and whether they vanish."""
    op, name = producer(node), op_name(producer(node))
    if name in ("mean", "sum", "amax"):
        dims: Any = argument(op, "dim")
        dims = list(range(rank)) if dims is None or dims == [] else dims
        dims = dims if isinstance(dims, (list, tuple)) else [dims]
        return sorted(int(dim) % rank for dim in dims), not bool(argument(op, "keepdim", False))
    if kind_of(node) is Kind.HOMOGENEOUS:
        return [], False
    spatial = next(int(digit) for digit in name if digit.isdigit())
    return list(range(rank - spatial, rank)), False


def mixed(node: fx.Node, ids: Tensor) -> Tensor:
    """Layout behind a MIX, MONOTONE or HOMOGENEOUS op."""
    dims, vanish = mix_dims(node, ids.dim())
    if any(ids.shape[dim] > 1 for dim in dims):
        raise LayoutError("it mixes features")
    for dim in reversed(dims if vanish else []):
        ids = ids.squeeze(dim)
    return ids


def through_mix(node: fx.Node, ids: Tensor) -> Tensor:
    """Layout in front of a MIX, MONOTONE or HOMOGENEOUS op."""
    rank = len(shape_of(operands(node)[0]))
    dims, vanish = mix_dims(node, rank)
    for dim in dims if vanish else []:
        ids = ids.unsqueeze(dim)
    if any(ids.shape[dim] > 1 for dim in dims):
        raise LayoutError("it mixes features")
    return ids


def keeps_constants(node: fx.Node) -> bool:
    """True if a MIX op maps ones to ones, that is, its weights sum to one everywhere."""
    source = operands(node)[0]
    shape = shape_of(source)
    dims, _ = mix_dims(node, len(shape))
    sizes = [size if dim in dims else 1 for dim, size in enumerate(shape)]

    def resolve(argument_node: fx.Node) -> Any:
        if argument_node is source:
            return torch.ones(sizes, dtype=torch.float64)
        return concrete(argument_node.meta["val"])

    args, kwargs = fx.map_arg((node.args, node.kwargs), resolve)
    assert callable(node.target)
    result: Tensor = node.target(*args, **kwargs)
    return bool((result - 1).abs().max() < 1e-9)


def averages_all(node: fx.Node) -> bool:
    """True for a mean over all axes behind the channels."""
    name = op_name(node)
    if name != "mean" and not name.startswith("adaptive_avg_pool"):
        return False
    if name != "mean":
        return all(size == 1 for size in argument(node, "output_size"))
    rank, dims = len(shape_of(operands(node)[0])), argument(node, "dim") or ()
    return rank > 2 and sorted(dim % rank for dim in dims) == list(range(2, rank))
