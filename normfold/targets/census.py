"""Count what an ONNX file holds: ops, norms, left-over per-channel arithmetic, dynamic sizes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.errors import UsageError

if TYPE_CHECKING:
    import onnx

NORMS = (
    "BatchNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "LRN",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
_PER_CHANNEL = {"Mul", "Add", "Sub", "Div"}
_MOVES = {"Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand"}
_FLOATS = {1, 10, 11, 16}  # TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16


@dataclass(frozen=True)
class PerChannel:
    """One op that scales or shifts each channel by a constant: ``size`` channels along ``axis`` (< 0)."""

    op: str
    node: str
    size: int
    axis: int


@dataclass(frozen=True)
class Census:
    """What an ONNX model holds.

    ``per_channel`` lists arithmetic with a float constant that has exactly one size other than 1, lying along
    axis 1 or the last axis; the one Add behind a MatMul that is a linear layer's bias is not among them.
    ``dynamic`` has the symbolic axes of each input and output. ``file_bytes`` counts external data too and is 0
    for a model that is not a file.
    """

    ops: dict[str, int]
    norms: dict[str, int]
    per_channel: tuple[PerChannel, ...]
    opset: int
    dynamic: dict[str, dict[int, str]]
    file_bytes: int = 0

    @property
    def batch_norms(self) -> int:
        """How many BatchNormalization nodes there are."""
        return self.norms.get("BatchNormalization", 0)

    @property
    def nodes(self) -> int:
        """How many nodes there are, subgraphs included."""
        return sum(self.ops.values())

    def to_dict(self) -> dict[str, int]:
        """Counts for a report: every op, then ``left-over per-channel``, ``opset`` and ``bytes``."""
        extra = {"left-over per-channel": len(self.per_channel), "opset": self.opset}
        return {**self.ops, **extra, "bytes": self.file_bytes}


def census(model: str | os.PathLike[str] | onnx.ModelProto) -> Census:
    """Count an ONNX file or a model in memory; external weights are not read.

    Raises:
        UsageError: the file is not an ONNX model.
    """
    import onnx

    size = 0
    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        path = Path(model)
        try:
            proto = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's own type, or OSError
            raise UsageError(
                "not a readable ONNX file", where=str(path), found=str(error)
            ) from error
        if not proto.graph.node and not proto.graph.output:
            raise UsageError("not an ONNX model", where=str(path))
        size = path.stat().st_size
        size += sum((path.parent / name).stat().st_size for name in _external(proto))
    nodes = list(_nodes(proto.graph.node))
    for function in proto.functions:
        nodes += _nodes(function.node)
    ops = Counter(node.op_type for node in nodes)
    opsets = {item.domain: item.version for item in proto.opset_import}
    return Census(
        ops=dict(ops.most_common()),
        norms={kind: ops[kind] for kind in NORMS if ops[kind]},
        per_channel=tuple(_per_channel(proto.graph)),
        opset=opsets.get("", opsets.get("ai.onnx", 0)),
        dynamic=_dynamic(proto.graph),
        file_bytes=size,
    )


def _external(proto: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _dynamic(graph: onnx.GraphProto) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        found[value.name] = {
            axis: size.dim_param or "?"
            for axis, size in enumerate(sizes)
            if not size.HasField("dim_value")
        }
    return {name: axes for name, axes in found.items() if axes}


def _per_channel(graph: onnx.GraphProto) -> Iterator[PerChannel]:
    constants = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    shapes = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        shapes[value.name] = (dims, kind.elem_type)
    linear: set[str] = set()  # outputs of MatMul by a weight that have had no bias yet
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
        elif node.op_type in _MOVES and all(name in constants for name in node.input):
            known = shapes.get(node.output[0])
            if known is not None and -1 not in known[0]:
                constants[node.output[0]] = known
            elif node.op_type in ("Identity", "Cast", "CastLike"):
                constants[node.output[0]] = constants[node.input[0]]
        elif node.op_type == "MatMul" and sum(name in constants for name in node.input) == 1:
            linear.add(node.output[0])
        elif node.op_type in _PER_CHANNEL:
            fixed = [name for name in node.input if name in constants]
            if len(fixed) != 1:
                continue
            other = next(name for name in node.input if name not in constants)
            axis = _channel_axis(constants[fixed[0]], shapes.get(other))
            if axis is None:
                continue
            if node.op_type == "Add" and axis == -1 and other in linear:
                continue  # the bias of a linear layer on more than two axes
            yield PerChannel(node.op_type, node.name, constants[fixed[0]][0][axis], axis)


def _constant(node: onnx.NodeProto) -> tuple[tuple[int, ...], int]:
    for attribute in node.attribute:
        if attribute.name == "value":
            return tuple(attribute.t.dims), attribute.t.data_type
        if attribute.name == "value_floats":
            return (len(attribute.floats),), 1
    return (), 0


def _channel_axis(
    constant: tuple[tuple[int, ...], int], other: tuple[tuple[int, ...], int] | None
) -> int | None:
    """Axis (< 0) along which a float constant varies, if that is the only one and may hold channels."""
    sizes, kind = constant
    wide = [axis - len(sizes) for axis, size in enumerate(sizes) if size != 1]
    if kind not in _FLOATS or len(wide) != 1:
        return None
    rank = len(other[0]) if other is not None and other[0] else None
    if rank is not None and wide[0] not in (-1, 1 - rank):
        return None  # such as a table over positions
    return wide[0]
