"""Packed tables in onnxruntime's own ops: GatherBlockQuantized and MatMulNBits read the same bytes.

onnxruntime has no Gather of 4 bits, and fuses no DequantizeLinear whose blocks lie along rows of outputs, as those
of a table do that is a head, too: it would unpack the whole table at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.expressions import fetch
from normfold.ir.graph import Graph
from normfold.ops.integer_ops import dequantize, take_rows
from normfold.ops.linear import linear_of

_LIBRARY = torch.library.Library("normfold", "FRAGMENT")
_LIBRARY.define("packed_rows(Tensor q, Tensor scale, Tensor ids, int block, int bits) -> Tensor")
_LIBRARY.define("packed_product(Tensor x, Tensor q, Tensor scale, int block, int bits) -> Tensor")
_ACCURACY = 4  # rows of x in 8 bits: what onnxruntime itself chooses for the other weights


def _rows_shape(q: Tensor, scale: Tensor, ids: Tensor, block: int, bits: int) -> Tensor:
    return scale.new_empty(*ids.shape, q.shape[1] * 8 // bits)


def _product_shape(x: Tensor, q: Tensor, scale: Tensor, block: int, bits: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(q))


torch.library.register_fake("normfold::packed_rows", _rows_shape, lib=_LIBRARY)
torch.library.register_fake("normfold::packed_product", _product_shape, lib=_LIBRARY)
packed_rows = torch.ops.normfold.packed_rows.default
packed_product = torch.ops.normfold.packed_product.default
TRANSLATED = frozenset((packed_rows, packed_product))


def write_packed(graph: Graph) -> None:
    """Let the rows of tables in blocks, and the heads that read the same table, be onnxruntime's ops, in place."""
    packed: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not take_rows or not node.args[3]:
            continue
        q, scale, ids, block, bits = node.args
        assert isinstance(q, fx.Node) and isinstance(bits, int)
        if q not in packed:
            packed[q] = _packed(graph, q, bits)
        _become(graph, node, packed_rows, packed[q], scale, ids, block, bits)
    for node in list(graph.nodes):
        linear = linear_of(node) if node.op == "call_function" else None
        if linear is None or linear.weight.target is not dequantize:
            continue
        q, scale, _, dim, block, bits = linear.weight.args
        assert isinstance(q, fx.Node)
        if q not in packed or not block or (dim, linear.out_axis) != (1, 0):
            continue
        product, bias = (linear.data, packed[q], scale, block, bits), linear.bias
        if bias is None:
            _become(graph, node, packed_product, *product)
            continue
        with graph.module.graph.inserting_before(node):
            made = graph.module.graph.call_function(packed_product, product)
        made.meta.update(node.meta)
        _become(graph, node, torch.ops.aten.add.Tensor, made, bias)
    for q in packed:
        for user in list(q.users):
            if not user.users:
                graph.module.graph.erase_node(user)
        if not q.users:
            graph.module.graph.erase_node(q)


def _become(graph: Graph, node: fx.Node, target: Any, *args: Any) -> None:
    with graph.module.graph.inserting_before(node):
        made = graph.module.graph.call_function(target, args)
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.module.graph.erase_node(node)


def _packed(graph: Graph, q: fx.Node, bits: int) -> fx.Node:
    """The integers of a table without signs, two in a byte where they have 4 bits."""
    steps = fetch(graph.module, str(q.target)).detach()
    whole = (steps.int() + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        whole = whole[:, ::2] | whole[:, 1::2] << 4
    name = f"normfold_{q.name}_packed"
    graph.module.register_buffer(name, whole.contiguous())
    with graph.module.graph.inserting_before(q):
        node = graph.module.graph.get_attr(name)
    with q.meta["val"].fake_mode:
        node.meta["val"] = torch.empty(whole.shape, dtype=torch.uint8)
    return node


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them."""
    from onnxscript import opset18 as op

    gather = _op("GatherBlockQuantized", "QIF", "gather_axis quantize_axis block_size bits")
    matmul = _op("MatMulNBits", "FQF", "K N bits block_size accuracy_level")

    def rows(q: Any, scale: Any, ids: Any, block: int, bits: int) -> Any:
        return gather(q, ids, scale, gather_axis=0, quantize_axis=1, block_size=block, bits=bits)

    def product(x: Any, q: Any, scale: Any, block: int, bits: int) -> Any:
        count, width = (int(size) for size in q.shape)
        size = block * bits // 8
        blocks = op.Reshape(q, op.Constant(value_ints=[count, width // size, size]))
        return matmul(
            x,
            blocks,
            scale,
            K=width * 8 // bits,
            N=count,
            bits=bits,
            block_size=block,
            accuracy_level=_ACCURACY,
        )

    return {packed_rows: rows, packed_product: product}


def _op(name: str, inputs: str, attributes: str) -> Any:
    """An op of com.microsoft that gives floats; its inputs by type: F floats, I indices, Q packed integers."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    domain, kinds = "com.microsoft", {"F": "float", "I": "int64", "Q": "uint8"}
    schema = OpSchema(
        name,
        domain,
        1,
        inputs=[
            OpSchema.FormalParameter(f"input_{place}", f"tensor({kinds[kind]})")
            for place, kind in enumerate(inputs)
        ],
        outputs=[OpSchema.FormalParameter("output", "tensor(float)")],
        attributes=[OpSchema.Attribute(item, OpSchema.AttrType.INT) for item in attributes.split()],
    )
    return Op(Opset(domain, 1), name, schema)
