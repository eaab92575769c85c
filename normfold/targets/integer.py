"""How the ops of a quantised graph are written in ONNX: as calls of opset 18, with the types of the file's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from normfold.ops.integer_ops import (
    dequantize,
    dynamic_matmul,
    global_pool,
    quantize,
    stored_matmul,
)
from normfold.targets import packed

if TYPE_CHECKING:
    import onnx_ir as ir

TRANSLATED = frozenset((quantize, dequantize, global_pool, dynamic_matmul, stored_matmul))
_FLOAT, _INT4 = 1, 22  # TensorProto's


def translations() -> dict[Any, Callable[..., Any]]:
    """The exporter's table for them: each is one op, but for the dynamic product, which ONNX has in parts."""
    from onnxscript import opset18 as op
    from onnxscript import opset21

    def quantize_linear(x: Any, scale: Any, zero_point: Any, dim: int | None = None) -> Any:
        if dim is None:
            return op.QuantizeLinear(x, scale, zero_point)
        return op.QuantizeLinear(x, scale, zero_point, axis=dim)

    def dequantize_linear(
        q: Any,
        scale: Any,
        zero_point: Any = None,
        dim: int | None = None,
        block: int = 0,
        bits: int = 8,
    ) -> Any:
        if bits == 4:
            q, zero_point = opset21.Cast(q, to=_INT4), None  # `pack` stores it so
        if dim is None:
            return op.DequantizeLinear(q, scale, zero_point)
        if not block:
            return op.DequantizeLinear(q, scale, zero_point, axis=dim)
        return opset21.DequantizeLinear(q, scale, zero_point, axis=dim, block_size=block)

    def pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    def dynamic(x: Any, q: Any, scale: Any) -> Any:
        steps, step, zero_point = op.DynamicQuantizeLinear(x)
        product = op.Cast(op.MatMulInteger(steps, q, zero_point), to=_FLOAT)
        return op.Mul(product, op.Mul(step, scale))

    return {
        quantize: quantize_linear,
        dequantize: dequantize_linear,
        global_pool: pool,
        dynamic_matmul: dynamic,
        stored_matmul: packed.product,
    }


def pack(model: ir.Model, native: bool) -> None:
    """Store weights of fewer than 8 bits as such, in place; ``native`` as of `pack_products`."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    for node in list(model.graph):
        target = node.attributes.get("to")
        if node.op_type != "Cast" or target is None or target.as_int() != _INT4:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.const_value is None:
            continue
        values = source.const_value.numpy().astype(ir.DataType.INT4.numpy())
        name = f"{source.name}_packed"
        stored = ir.Value(
            name=name,
            shape=result.shape,
            type=ir.TensorType(ir.DataType.INT4),
            const_value=ir.tensor(values, dtype=ir.DataType.INT4, name=name),
        )
        model.graph.register_initializer(stored)
        result.replace_all_uses_with(stored)
        model.graph.remove(node, safe=True)
    packed.pack_products(model, native)
    common.RemoveUnusedNodesPass()(model)
