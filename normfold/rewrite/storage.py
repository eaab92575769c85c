"""How a value on a grid is stored: integers or floats of 8 bits, and scales, for which runtimes have kernels.

on_grid(w, s)     ->  dequantize(to_steps(w, s), s)         the baker evaluates `to_steps`, and leaves the rest
on_grid(x, s, z)  ->  dequantize(quantize(x, s, z), s, z)   where the grid is all of a type: kernels take those
on_dynamic_grid(x) @ on_grid(w, s)  ->  dynamic_matmul(x, to_steps(w, s), s)
"""

from __future__ import annotations

import torch
from torch import fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import Graph
from normfold.ops.integer_ops import (
    dequantize,
    dynamic_matmul,
    on_dynamic_grid,
    on_grid,
    quantize,
    stored_type,
    to_steps,
)
from normfold.ops.linear import Linear, linear_of
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten


def store_grids(graph: Graph) -> list[str]:
    """Write every value on a grid as it is stored, in place; returns what was done, in words."""
    rewriter = Rewriter(graph)
    for node in list(graph.nodes):
        linear = linear_of(node) if not is_static(node) else None
        if (
            linear is not None
            and linear.data.target is on_dynamic_grid
            and linear.weight.target is on_grid
        ):
            _product(linear, rewriter)
    for node in list(graph.nodes):
        if node.target is on_grid and node.users:
            _parameter(node, rewriter) if is_static(node) else _activation(node, rewriter)
    return rewriter.edits


def _parameter(node: fx.Node, rewriter: Rewriter) -> None:
    _, scale, _, dim, block, low, high, rounding = node.args
    assert isinstance(scale, fx.Node) and isinstance(low, int) and isinstance(high, int)
    steps = rewriter.expression(to_steps, *node.args)
    zeros, dtype = None, stored_type(low, high, rounding)  # type: ignore[arg-type]
    bits = 8 * dtype.itemsize
    if block:
        bits = 4 if high < 8 else bits
    else:  # written out: some of onnxruntime's kernels are not chosen where it is missing
        zeros = rewriter.constant(torch.zeros(scale.meta["val"].shape, dtype=dtype), "zero_point")
    rewriter.replace(node, rewriter.expression(dequantize, steps, scale, zeros, dim, block, bits))
    rewriter.record(f"{node.name}: stored in {bits} bits")


def _activation(node: fx.Node, rewriter: Rewriter) -> None:
    x, scale, zero, _, _, low, high, _ = node.args
    assert isinstance(zero, fx.Node)
    dtype = zero.meta["val"].dtype
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    if (low, high) != (limits.min, limits.max):
        return
    steps = rewriter.insert_before(node, quantize, x, scale, zero, None)
    values = rewriter.insert_before(node, dequantize, steps, scale, zero, None, 0, limits.bits)
    rewriter.replace(node, values)
    rewriter.record(f"{node.name}: stored in {limits.bits} bits")


def _product(linear: Linear, rewriter: Rewriter) -> None:
    """x @ W' + b with W' as (inputs, outputs), and one scale per output."""
    weight, scale, zero, dim, block, *how = linear.weight.args
    if dim != linear.out_axis or block:
        return
    if dim == 0:
        weight = rewriter.expression(_aten.t.default, weight)
    steps = rewriter.expression(to_steps, weight, scale, zero, 1, 0, *how)
    x, node = linear.data.args[0], linear.node
    result = rewriter.insert_before(node, dynamic_matmul, x, steps, scale)
    if linear.bias is not None:
        result = rewriter.insert_before(node, _aten.add.Tensor, result, linear.bias)
    rewriter.replace(node, result)
    rewriter.record(f"{node.name}: integers, with the grid of its input found at run time")
