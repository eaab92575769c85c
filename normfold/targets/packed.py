"""Products of floats with weights that are stored in 2, 4 or 8 bits, as runtimes take them.

onnxruntime has one op for them, MatMulNBits. The other form, a MatMul behind DequantizeLinear, becomes the same op
when onnxruntime loads the file, but so that the inputs too are rounded to 8 bits (``accuracy_level`` 4, which is
what sessions take). So the op itself is written, with level 1, which computes in float32. It is not an op of ONNX:
only onnxruntime runs such a file. For other runtimes DequantizeLinear unpacks the weights, 2 bits as 4.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_DOMAIN, _NAME = "com.microsoft", "MatMulNBits"
_FLOAT32 = 1  # of `accuracy_level`


def product(x: Any, q: Any, scale: Any, zero_point: Any, block: int, bits: int) -> Any:
    """The op as the exporter records it: weights are one to a byte until `pack_products` packs them."""
    from onnxscript.values import Op, Opset

    sizes = {"K": q.shape[1], "N": q.shape[0], "bits": bits, "block_size": block}
    op = Op(Opset(_DOMAIN, 1), _NAME, _schema())
    return op(x, q, scale, zero_point, **sizes, accuracy_level=_FLOAT32)


@cache
def _schema() -> Any:
    from onnx.defs import OpSchema

    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    optional = OpSchema.FormalParameterOption.Optional
    attributes = ("K", "N", "bits", "block_size", "accuracy_level")
    return OpSchema(
        _NAME,
        _DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter("A", "T1"),
            OpSchema.FormalParameter("B", "T2"),
            OpSchema.FormalParameter("scales", "T1"),
            OpSchema.FormalParameter("zero_points", "T2", param_option=optional),
        ],
        outputs=[OpSchema.FormalParameter("Y", "T1")],
        type_constraints=[("T1", floats, ""), ("T2", ["tensor(uint8)"], "")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT) for name in attributes],
    )


def pack_products(model: ir.Model, native: bool) -> None:
    """Store the weights of these products in their bits, in place; where the runtime has no such op (``native``
    False), write them with ops of ONNX."""
    own = (node for node in model.graph if node.op_type == _NAME and node.domain == _DOMAIN)
    # those of tables (`normfold.targets.tables`) are packed already
    nodes = [node for node in own if node.attributes["accuracy_level"].as_int() == _FLOAT32]
    stored: dict[tuple[str, str], ir.Value] = {}
    for node in nodes:
        (_pack if native else _unpack)(model, node, stored)
    if nodes and native:
        model.opset_imports[_DOMAIN] = 1


def keep_from_gemm(model: ir.Model) -> None:
    """Add biases to products of matrices with unpacked weights by Sum instead of Add, in place.

    onnxruntime makes a Gemm of MatMul and Add, and of that and a Relu or a Clip what MatMulNBits cannot replace:
    the weights are then unpacked in every run (ten times the time of floats). It leaves a Sum alone.
    """
    for node in model.graph:
        product = next((value.producer() for value in node.inputs if value is not None), None)
        if node.op_type != "Add" or product is None or product.op_type != "MatMul":
            continue
        x, weight = product.inputs
        matrix = x is not None and x.shape is not None and x.shape.rank() == 2
        if matrix and _is_unpacked(weight) and not _is_unpacked(x):
            node.op_type = "Sum"


def _is_unpacked(value: ir.Value | None) -> bool:
    made = None if value is None else value.producer()
    return made is not None and made.op_type == "DequantizeLinear"


def _pack(model: ir.Model, node: ir.Node, stored: dict[tuple[str, str], ir.Value]) -> None:
    bits, block, (q, scale, zero) = _read(node)
    blocks = np.pad(q, ((0, 0), (0, -q.shape[1] % block))).reshape(len(q), -1, block)
    made = [_packed(blocks, bits), scale]
    if zero is not None:
        made.append(_packed(np.pad(zero, ((0, 0), (0, -zero.shape[1] % (8 // bits)))), bits))
    for place, array in enumerate(made, 1):
        node.replace_input_with(place, _kept(model, node.inputs[place], "packed", array, stored))


def _packed(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Values of ``bits`` along the last axis in bytes, the first one in the lowest bits."""
    count = 8 // bits
    parts = values.reshape(*values.shape[:-1], -1, count)
    whole = parts[..., 0].copy()
    for place in range(1, count):
        whole |= parts[..., place] << (bits * place)
    return whole


def _unpack(model: ir.Model, node: ir.Node, stored: dict[tuple[str, str], ir.Value]) -> None:
    import onnx_ir as ir
    from onnx_ir import convenience

    bits, block, (q, scale, zero) = _read(node)
    how = {"axis": 0, "block_size": block}
    if (scale == scale[:, :1]).all() and (zero is None or (zero == zero[:, :1]).all()):
        how, scale = (
            {"axis": 1},
            scale[:, 0],
        )  # OpenVINO takes no blocks of which the last is shorter
        zero = None if zero is None else zero[:, 0]
    kind = ir.DataType.UINT8 if bits == 8 else ir.DataType.UINT4
    shift = 0
    if zero is None:  # signed, without a zero point
        shift, kind = 2 ** (bits - 1), ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
    integers = (q.astype(np.int16) - shift).astype(kind.numpy()).T.copy()
    parts = [
        _kept(model, node.inputs[1], "turned", integers, stored, kind),
        _kept(model, node.inputs[2], "turned", scale.T.copy(), stored),
    ]
    if zero is not None:
        turned = zero.astype(kind.numpy()).T.copy()
        parts.append(_kept(model, node.inputs[3], "turned", turned, stored, kind))
    weight = ir.node("DequantizeLinear", parts, how)
    weight.outputs[0].type, weight.outputs[0].shape = parts[1].type, ir.Shape(integers.shape)
    nodes, x = [weight], node.inputs[0]
    if x is not None and x.dtype not in (None, parts[1].dtype):
        nodes.append(ir.node("Cast", [weight.outputs[0]], {"to": x.dtype}))
        nodes[1].outputs[0].type, nodes[1].outputs[0].shape = x.type, weight.outputs[0].shape
    made = ir.node("MatMul", [x, nodes[-1].outputs[0]])
    nodes.append(made)
    for item in nodes:
        item.metadata_props.update(node.metadata_props)
        item.meta.update(node.meta)
    old, new = node.outputs[0], made.outputs[0]
    new.type, new.shape = old.type, old.shape
    convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [old], [new])


def _read(node: ir.Node) -> tuple[int, int, list[Any]]:
    """Bits, block, and the arrays of integers, scales and zero points (None where there are none)."""
    bits, block = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    values = [*node.inputs[1:4], None][:3]
    arrays = [
        None if value is None or value.const_value is None else value.const_value.numpy()
        for value in values
    ]
    return bits, block, arrays


def _kept(
    model: ir.Model,
    source: ir.Value | None,
    ending: str,
    array: np.ndarray[Any, Any],
    stored: dict[tuple[str, str], ir.Value],
    kind: ir.DataType | None = None,
) -> ir.Value:
    """An initialiser in place of another one, once for all that read it."""
    import onnx_ir as ir

    assert source is not None
    key = (str(source.name), ending)
    if key not in stored:
        name = f"{source.name}_{ending}"
        tensor = ir.tensor(array, dtype=kind, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        model.graph.register_initializer(value)
        stored[key] = value
    return stored[key]
