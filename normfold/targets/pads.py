"""Zero pads of a file, moved into the pads of the convolutions and pools that read them.

ATen pads both ends of an axis alike, ONNX each for itself, so that what TensorFlow calls SAME needs no op of its
own. Between integers it must not have one: Pad runs in floats there, between two conversions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_POSITIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid")
_SAME = ("MaxPool", "Reshape", "Transpose", "Identity")


def take_pads(model: ir.Model) -> int:
    """Let readers take the zero pads in front of them, in place; returns how many readers did.

    A convolution takes zeros beyond the spatial ends; so does a maximum of what is not negative, and a mean that
    counts them. Pads that nothing reads any more are left for the removal of unused nodes.
    """
    import onnx_ir as ir

    taken = 0
    for node in reversed(list(model.graph)):  # of pads in a row the last one first
        if node.op_type != "Pad" or (pads := _zeros(node)) is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        for reader, place in list(result.uses()):
            own = _own(reader) if place == 0 else None
            if own is None or len(own) != len(pads) or not _takes(reader, node, pads, own):
                continue
            both = [mine + more for mine, more in zip(own, pads, strict=True)]
            reader.attributes["pads"] = ir.AttrInt64s("pads", both)
            if reader.op_type == "AveragePool":
                reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
            reader.replace_input_with(0, source)
            taken += 1
        if any("Pool" in reader.op_type for reader, _ in result.uses()):
            _unfused(model, node)
    return taken


def _unfused(model: ir.Model, node: ir.Node) -> None:
    """Pad with -0.0: onnxruntime (1.31) fuses every zero pad with the pool behind it, also where a maximum of
    negative numbers is another then, where sizes are rounded up, and where it refuses the pool that it made."""
    import numpy as np
    import onnx_ir as ir

    source = node.inputs[0]
    assert source is not None
    kind = (source.dtype or ir.DataType.FLOAT).numpy()
    if kind.kind != "f":
        return
    name = f"{node.name}_zero"
    zero = ir.tensor(np.array(-0.0, kind), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(zero.dtype), shape=ir.Shape([]), const_value=zero
    )
    model.graph.register_initializer(value)
    node.resize_inputs(max(3, len(node.inputs)))
    node.replace_input_with(2, value)


def _zeros(node: ir.Node) -> list[int] | None:
    """The pads of the spatial axes (all beginnings, then all ends), None where it pads anything else or crops."""
    source = node.inputs[0]
    mode = node.attributes.get("mode")
    if (
        source is None
        or source.shape is None
        or (mode is not None and mode.as_string() != "constant")
    ):
        return None
    constants = [value.const_value if value is not None else None for value in node.inputs[1:]]
    widths, value, axes = [*constants, None, None, None][:3]
    if widths is None or any(
        given is not None and constant is None
        for given, constant in zip(node.inputs[1:], constants, strict=True)
    ):
        return None
    if value is not None and value.numpy().item() != 0:
        return None
    rank = len(source.shape)
    places = [int(axis) % rank for axis in axes.numpy()] if axes is not None else range(rank)
    given = widths.numpy().reshape(2, -1).tolist()
    every = [[0] * rank, [0] * rank]
    for end in (0, 1):
        for place, width in zip(places, given[end], strict=True):
            every[end][place] = int(width)
    if any(every[0][:2] + every[1][:2]) or min(map(min, every)) < 0:
        return None
    return every[0][2:] + every[1][2:]


def _own(reader: ir.Node) -> list[int] | None:
    """The pads that a reader has already; None where it is no op that pads."""
    if reader.op_type not in ("Conv", "MaxPool", "AveragePool"):
        return None
    auto = reader.attributes.get("auto_pad")
    source = reader.inputs[0]
    if (
        (auto is not None and auto.as_string() != "NOTSET")
        or source is None
        or source.shape is None
    ):
        return None
    pads = reader.attributes.get("pads")
    return list(pads.as_ints()) if pads is not None else [0] * 2 * (len(source.shape) - 2)


def _takes(reader: ir.Node, node: ir.Node, pads: list[int], own: list[int]) -> bool:
    if reader.op_type == "Conv":
        return True
    kernel = list(reader.attributes["kernel_shape"].as_ints())
    if any(a + b >= k for a, b, k in zip(pads, own, kernel * 2, strict=True)):
        return False  # a window in the padding alone, which runtimes refuse
    ceil = reader.attributes.get("ceil_mode")
    if ceil is not None and ceil.as_int():  # windows that begin in the padding are left out
        return False
    if reader.op_type == "MaxPool":
        return len(reader.outputs) == 1 and _is_positive(node.inputs[0])
    return not any(own)


def _is_positive(value: ir.Value | None) -> bool:
    """True for what is never below zero."""
    made = value.producer() if value is not None else None
    if made is None:
        return False
    if (
        made.op_type == "DequantizeLinear"
    ):  # of integers without a sign, whose zero is the least of them
        zero = made.inputs[2].const_value if len(made.inputs) > 2 and made.inputs[2] else None
        return zero is not None and zero.numpy().dtype.kind == "u" and not zero.numpy().any()
    if made.op_type == "Clip":
        low = made.inputs[1].const_value if len(made.inputs) > 1 and made.inputs[1] else None
        return low is not None and bool((low.numpy() >= 0).all())
    return made.op_type in _POSITIVE or (made.op_type in _SAME and _is_positive(made.inputs[0]))
