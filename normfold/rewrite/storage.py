"""How a value on a grid is stored: integers or floats of 8 bits, and scales, for which runtimes have kernels.

on_grid(w, s)     ->  dequantize(to_steps(w, s), s)         the baker evaluates `to_steps`, and leaves the rest
on_grid(x, s, z)  ->  dequantize(quantize(x, s, z), s, z)   where the grid is all of a type: kernels take those
on_dynamic_grid(x) @ on_grid(w, s)  ->  dynamic_matmul(x, to_steps(w, s), s)
embedding(on_grid(w, s), ids)       ->  take_rows(to_steps(w, s), s, ids)

A table that a product reads too is stored once: both read the same integers.
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
    take_rows,
    to_steps,
)
from normfold.ops.integers import bytes_of
from normfold.ops.linear import Linear, linear_of
from normfold.ops.table import row_of
from normfold.rewrite.rewriter import Rewriter

_aten = torch.ops.aten


def store_grids(graph: Graph) -> list[str]:
    """Write every value on a grid as it is stored, in place; returns what was done, in words."""
    rewriter = Rewriter(graph)
    found = (linear_of(node) for node in graph.nodes if not is_static(node))
    linears = [x for x in found if x is not None and x.weight.target is on_grid]
    for linear in sorted(linears, key=lambda x: not row_of(x.node).lookup):  # tables, then heads
        if row_of(linear.node).lookup:
            _rows(linear, rewriter)
        elif linear.data.target is on_dynamic_grid:
            _product(linear, rewriter)
    for node in list(graph.nodes):
        if node.target is on_grid and node.users:
            _parameter(node, rewriter) if is_static(node) else _activation(node, rewriter)
    return rewriter.edits


def _parameter(node: fx.Node, rewriter: Rewriter) -> None:
    _, scale, zero, dim, block, low, high, rounding = node.args
    assert isinstance(scale, fx.Node) and isinstance(low, int) and isinstance(high, int)
    steps = _steps(node, rewriter)
    zeros, dtype = zero, stored_type(low, high, rounding)  # type: ignore[arg-type]
    bits = _bits(node)
    # written out: some of onnxruntime's kernels are not chosen where it is missing
    if not block and zero is None:
        zeros = rewriter.constant(torch.zeros(scale.meta["val"].shape, dtype=dtype), "zero_point")
    rewriter.replace(node, rewriter.expression(dequantize, steps, scale, zeros, dim, block, bits))
    rewriter.record(f"{node.name}: stored in {bits} bits")


def _steps(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    """The integers of a parameter on a grid: one expression, whoever reads it."""
    return _known(node) or rewriter.expression(to_steps, *node.args)


def _known(node: fx.Node) -> fx.Node | None:
    """The expression of the integers, where there is one."""
    readers = {user for source in node.all_input_nodes for user in source.users}
    return next((x for x in readers if x.target is to_steps and x.args == node.args), None)


def _bits(node: fx.Node) -> int:
    """Bits in which the integers of a parameter are stored: blocks may be packed."""
    *_, block, low, high, rounding = node.args
    assert isinstance(low, int) and isinstance(high, int)
    return 4 if block and high < 8 else 8 * stored_type(low, high, rounding).itemsize  # type: ignore[arg-type]


def _rows(linear: Linear, rewriter: Rewriter) -> None:
    """Rows of a table whose scales are those of rows, or of blocks of them."""
    grid, node = linear.weight, linear.node
    _, scale, _, dim, block, *_ = grid.args
    if dim != (1 if block else 0):
        return
    steps, bits = _steps(grid, rewriter), _bits(grid)
    result = rewriter.insert_before(node, take_rows, steps, scale, linear.data, block, bits)
    rewriter.replace(node, result)
    rewriter.record(f"{node.name}: rows stored in {bits} bits")


def _activation(node: fx.Node, rewriter: Rewriter) -> None:
    x, scale, zero, _, _, low, high, _ = node.args
    assert isinstance(zero, fx.Node)
    dtype = zero.meta["val"].dtype
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    if (low, high) != (limits.min, limits.max):
        return
    steps = _bytes(node, rewriter.graph)
    if steps is None:
        steps = rewriter.insert_before(node, quantize, x, scale, zero, None)
    values = rewriter.insert_before(node, dequantize, steps, scale, zero, None, 0, limits.bits)
    rewriter.replace(node, values)
    rewriter.record(f"{node.name}: stored in {limits.bits} bits")


def _bytes(node: fx.Node, graph: Graph) -> fx.Node | None:
    """The steps of bytes on their own grid."""
    x, scale, zero, *_ = node.args
    assert isinstance(x, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero, fx.Node)
    own = zero.meta["val"].dtype == torch.uint8 and graph.value(scale) == 1
    return bytes_of(x) if own and graph.value(zero) == 0 else None


def _product(linear: Linear, rewriter: Rewriter) -> None:
    """x @ W' + b with W' as (inputs, outputs), and one scale per output."""
    weight, scale, zero, dim, block, *how = linear.weight.args
    if dim != linear.out_axis or block:
        return
    steps = _known(linear.weight)  # by the rows of a table: turned in the file
    turned = steps is not None and dim == 0
    if steps is None:
        if dim == 0:
            weight = rewriter.expression(_aten.t.default, weight)
        steps = rewriter.expression(to_steps, weight, scale, zero, 1, 0, *how)
    x, node = linear.data.args[0], linear.node
    result = rewriter.insert_before(node, dynamic_matmul, x, steps, scale, turned)
    if linear.bias is not None:
        result = rewriter.insert_before(node, _aten.add.Tensor, result, linear.bias)
    rewriter.replace(node, result)
    rewriter.record(f"{node.name}: integers, with the grid of its input found at run time")
