"""Faults in ONNX files: initialisers, attributes, edges, ops, bytes of weights in the file and beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Model = onnx.ModelProto
Change = Callable[[Model, random.Random], None]

EXCHANGED = {
    "Add": ("Sub", "Mul"), "Sub": ("Add",), "Mul": ("Add", "Div"), "Div": ("Mul",), "Relu": ("Abs", "Softplus"),
    "Sigmoid": ("Tanh", "HardSigmoid"), "Tanh": ("Sigmoid",), "Erf": ("Tanh",), "Sqrt": ("Abs",), "Max": ("Min",),
    "Min": ("Max",), "MaxPool": ("AveragePool",), "GlobalAveragePool": ("GlobalMaxPool",), "Gelu": ("Relu",),
    "ReduceMean": ("ReduceMax", "ReduceSum"), "Softmax": ("LogSoftmax",), "HardSwish": ("Relu",),
    "Clip": ("Identity",), "Neg": ("Abs",), "Exp": ("Softplus",), "Swish": ("Relu",), "Softplus": ("Relu",),
}  # fmt: skip
_FLOATS = (np.float32, np.float16, np.float64)
BESIDE = "weights.data"


@dataclass(frozen=True)
class Fault:
    """One change of a model, or of the bytes of its weights."""

    place: str
    name: str
    change: Change
    outside: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"

    def write(self, right: Path, folder: Path, draw: random.Random) -> Path:
        """A damaged copy in a folder."""
        model, path = onnx.load(right), folder / "wrong.onnx"
        if self.outside:
            beside: dict[str, Any] = {
                "all_tensors_to_one_file": True,
                "location": BESIDE,
                "size_threshold": 0,
            }
            onnx.save_model(model, path, save_as_external_data=True, **beside)
            data = bytearray((folder / BESIDE).read_bytes())
            _OUTSIDE[self.name](data, draw)
            (folder / BESIDE).write_bytes(data)
            return path
        self.change(model, draw)
        onnx.save(model, path)
        return path


def faults(path: Path, draw: random.Random) -> list[Fault]:
    """Every kind of fault at every place of a file, in random order."""
    model = onnx.load(path)
    found = [*_initialisers(model, draw), *_attributes(model), *_ops(model), *_edges(model, draw)]
    found += [Fault("bytes", f"bit {bit} of a number of {item.name}", _bit(item.name, bit))
              for item in _weights(model) for bit in (_bits(item) or ())]  # fmt: skip
    found += [Fault("bytes", name, _nothing, outside=True) for name in _OUTSIDE for _ in range(4)]
    draw.shuffle(found)
    return found


def chosen(found: list[Fault], limit: int) -> list[Fault]:
    """So many of them, as evenly over the places as there are."""
    places: dict[str, list[Fault]] = {}
    for item in found:
        places.setdefault(item.place, []).append(item)
    made: list[Fault] = []
    queues = list(places.values())
    while queues and len(made) < limit:
        made += [queue.pop() for queue in queues]
        queues = [queue for queue in queues if queue]
    return made[:limit]


def _nothing(model: Model, draw: random.Random) -> None:
    """What is outside the model is changed, not the model."""


# -- initialisers -----------------------------------------------------------------------------------


def _weights(model: Model) -> list[onnx.TensorProto]:
    return [
        item
        for item in model.graph.initializer
        if np.prod(item.dims) and item.data_type != onnx.TensorProto.INT64
    ]


def _initialisers(model: Model, draw: random.Random) -> Iterator[Fault]:
    for item in _weights(model):
        value = numpy_helper.to_array(item)
        for name, by in _changes(value, draw):
            yield Fault("parameters", f"{item.name}: {name}", _valued(item.name, by))
        alike = [
            other.name
            for other in _weights(model)
            if (other.dims, other.data_type) == (item.dims, item.data_type)
            and other.name != item.name
        ]
        if alike and value.size > 1:
            other = draw.choice(alike)
            yield Fault("parameters", f"{item.name}: is {other}", _swapped(item.name, other))


def _changes(value: Any, draw: random.Random) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    index = draw.randrange(value.size)
    if value.dtype in _FLOATS:
        yield "times 1.5", lambda x: x * x.dtype.type(1.5)
        yield "times 1.01", lambda x: x * x.dtype.type(1.01)
        yield "negative", lambda x: -x
        yield "plus 0.25", lambda x: x + x.dtype.type(0.25)
        yield f"number {index} moved", lambda x: _one(x, index, lambda y: y + (x.std() or 1.0))
    elif value.dtype == np.bool_ or value.dtype.itemsize > 4:
        return
    else:
        yield "one up", lambda x: _up(x)
        yield f"number {index} the other end", lambda x: _one(x, index, lambda y: _end(x, y))
    yield "zero", np.zeros_like
    for axis, size in enumerate(value.shape):
        if size > 1:
            yield f"flipped along {axis}", partial(np.flip, axis=axis)
            yield f"rolled along {axis}", partial(np.roll, shift=1, axis=axis)
    if value.ndim == 2 and value.shape[0] == value.shape[1]:
        yield "transposed", lambda x: x.T


def _up(value: Any) -> Any:
    top = 7 if "int4" in str(value.dtype) else np.iinfo(value.dtype).max
    return np.minimum(value.astype(np.int64) + 1, top).astype(value.dtype)


def _end(value: Any, number: Any) -> Any:
    if "int4" in str(value.dtype):
        return 7 if int(number) <= 0 else -7
    info = np.iinfo(value.dtype)
    return info.max if int(number) <= (int(info.max) + int(info.min)) // 2 else info.min


def _one(value: Any, index: int, by: Callable[[Any], Any]) -> Any:
    flat = value.copy().reshape(-1)
    flat[index] = by(flat[index])
    return flat.reshape(value.shape)


def _named(model: Model, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(item for item in model.graph.initializer if item.name == name)
    return found


def _valued(name: str, by: Callable[[Any], Any]) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        item = _named(model, name)
        value = numpy_helper.to_array(item)
        made = np.ascontiguousarray(np.asarray(by(value)).astype(value.dtype)).reshape(value.shape)
        item.CopyFrom(numpy_helper.from_array(made, name))

    return change


def _swapped(name: str, other: str) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        item, value = _named(model, name), numpy_helper.to_array(_named(model, other))
        item.CopyFrom(numpy_helper.from_array(value, name))

    return change


# -- bytes ------------------------------------------------------------------------------------------


def _bits(item: onnx.TensorProto) -> tuple[int, ...]:
    size = len(item.raw_data) // max(1, int(np.prod(item.dims)))
    return {1: (7, 6, 5), 2: (15, 13, 10), 4: (31, 28, 25)}.get(size, ())


def _bit(name: str, bit: int) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        item = _named(model, name)
        data = bytearray(item.raw_data)
        size = len(data) // int(np.prod(item.dims))
        start = size * draw.randrange(len(data) // size)
        data[start + bit // 8] ^= 1 << bit % 8
        item.raw_data = bytes(data)

    return change


def _zeroed(data: bytearray, draw: random.Random) -> None:
    start = 4 * draw.randrange(len(data) // 4)
    data[start : start + 64] = bytes(len(data[start : start + 64]))


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[len(data) * 3 // 4 :]


def _shifted(data: bytearray, draw: random.Random) -> None:
    data[:] = data[4:] + data[:4]


def _exchanged(data: bytearray, draw: random.Random) -> None:
    half = len(data) // 8 * 4
    one, other = (4 * draw.randrange(half // 4), half + 4 * draw.randrange(half // 4))
    data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]


def _random(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


_OUTSIDE = {
    "64 bytes of external data zero": _zeroed,
    "external data cut short": _cut,
    "external data shifted by a number": _shifted,
    "two numbers of external data exchanged": _exchanged,
    "a bit of external data": _random,
}


# -- nodes ------------------------------------------------------------------------------------------


def _attributes(model: Model) -> Iterator[Fault]:
    for index, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            other: Any = None
            match attribute.name, value:
                case "perm", list():
                    other = [*value[:-2], value[-1], value[-2]]
                case "axis", int():
                    other = value - 1
                case (("epsilon" | "alpha" | "beta"), float()):
                    other = 2 * value if value else 0.5
                case (
                    (
                        "count_include_pad"
                        | "transB"
                        | "transA"
                        | "keepdims"
                        | "ceil_mode"
                        | "is_causal"
                    ),
                    int(),
                ):
                    other = 1 - value
                case (("pads" | "strides" | "dilations"), list()) if len(set(value)) > 1:
                    other = value[::-1]
                case "approximate", bytes():
                    other = b"none" if value == b"tanh" else b"tanh"
                case "scale", float():
                    other = 1.1 * value
            if other is not None:
                text = f"{node.op_type} {node.output[0]}: {attribute.name} {value} is {other}"
                yield Fault("expressions", text, _attribute(index, attribute.name, other))


def _attribute(index: int, name: str, value: Any) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        node = model.graph.node[index]
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _ops(model: Model) -> Iterator[Fault]:
    for index, node in enumerate(model.graph.node):
        for other in EXCHANGED.get(node.op_type, ()):
            yield Fault("graph", f"{node.op_type} {node.output[0]} is {other}", _op(index, other))


def _op(index: int, other: str) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        node = model.graph.node[index]
        node.op_type, node.domain = other, ""
        if other in ("Identity", "Relu", "Abs", "Softplus"):
            del node.input[1:], node.attribute[:]

    return change


def _edges(model: Model, draw: random.Random) -> Iterator[Fault]:
    """Operands taken from elsewhere, exchanged or left out; ops left out."""
    types = _types(model)
    seen: list[str] = [item.name for item in model.graph.input]
    for index, node in enumerate(model.graph.node):
        for place, name in enumerate(node.input):
            alike = [
                other
                for other in seen
                if types.get(other) == types.get(name, 0) and other not in node.input
            ]
            for other in draw.sample(alike, min(2, len(alike))):
                text = f"{node.op_type} {node.output[0]}: reads {other} in place of {name}"
                yield Fault("graph", text, _input(index, place, other))
            if types.get(name) == types.get(node.output[0], 0):
                yield Fault(
                    "graph",
                    f"{node.op_type} {node.output[0]}: only {name} is left",
                    _bypass(index, place),
                )
        turns = node.op_type in ("Sub", "Div", "MatMul", "Concat", "Pow") and len(node.input) > 1
        if turns and types.get(node.input[0]) == types.get(node.input[1], 0):
            text = f"{node.op_type} {node.output[0]}: operands exchanged"
            yield Fault("graph", text, _turned(index))
        if node.op_type in ("Conv", "Gemm", "LayerNormalization") and len(node.input) == 3:
            yield Fault(
                "graph",
                f"{node.op_type} {node.output[0]}: without its bias",
                _input(index, 2, None),
            )
        seen += node.output


def _types(model: Model) -> dict[str, Any]:
    """Type and shape of every value that is known."""
    known = onnx.shape_inference.infer_shapes(model).graph
    found: dict[str, Any] = {}
    for item in (*known.input, *known.value_info, *known.output):
        tensor = item.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        found[item.name] = tensor.elem_type, shape
    return found


def _input(index: int, place: int, other: str | None) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        if other is None:  # the last one
            del model.graph.node[index].input[place:]
        else:
            model.graph.node[index].input[place] = other

    return change


def _turned(index: int) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        node = model.graph.node[index]
        first, second = node.input[:2]
        node.input[0], node.input[1] = second, first

    return change


def _bypass(index: int, place: int) -> Change:
    def change(model: Model, draw: random.Random) -> None:
        node = model.graph.node[index]
        made = helper.make_node("Identity", [node.input[place]], [node.output[0]])
        node.CopyFrom(made)

    return change
