"""Write an ONNX model without a second copy of its weights, and so that no half-written file can be seen.

An ONNX file is one protobuf message. Building it in memory costs the weights twice (once in the message, once in
its bytes); here the message is built without them and each weight's bytes go from the tensor to the file, in the
place that the format has for them.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from normfold.errors import ExportError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SINGLE_FILE_LIMIT = 1_500_000_000  # bytes of weights; protobuf itself ends at 2 GiB
_SMALL = 1024  # bytes: a tensor below stays inside the message
_PAGE, _LARGE = (
    4096,
    1 << 20,
)  # tensors of a megabyte and more start on a page, so that runtimes can map them


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initialisers."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


class Message:
    """A model as protobuf whose larger weights are still tensors.

    ``proto`` has, for each of them, a `TensorProto` with name, type and shape that refers to the external file
    ``data_name``.
    """

    def __init__(self, model: ir.Model, data_name: str) -> None:
        import onnx_ir as ir

        self.data_name = data_name
        self.tensors: dict[str, tuple[int, ir.TensorProtocol]] = {}
        replaced: list[tuple[ir.Value, Any]] = []
        end = 0
        try:
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor is None:
                    raise ExportError(f"the weight `{name}` has no value")
                if tensor.nbytes < _SMALL or not hasattr(tensor, "tobytes"):
                    continue
                if tensor.nbytes >= _LARGE:
                    end += -end % _PAGE
                shape: Any = tensor.shape
                stand_in = ir.ExternalTensor(
                    data_name, end, tensor.nbytes, tensor.dtype, shape=shape, name=name
                )
                replaced.append((value, tensor))
                value.const_value = stand_in
                self.tensors[name] = (end, tensor)
                end += tensor.nbytes
            self.proto: onnx.ModelProto = ir.serde.serialize_model(model)
        finally:
            for value, tensor in replaced:
                value.const_value = tensor

    def write_data(self, file: IO[bytes]) -> None:
        """Write the external data file."""
        for offset, tensor in self.tensors.values():
            file.write(bytes(offset - file.tell()))
            _write_tensor(tensor, file)

    def write_external(self, file: IO[bytes]) -> None:
        """Write the model that refers to the external data file."""
        file.write(self.proto.SerializeToString())

    def write_single(self, file: IO[bytes]) -> None:
        """Write one file that holds everything; ``proto`` is used up."""
        graph, weights = self.proto.graph, list[tuple[bytes, Any]]()
        small = []
        for item in graph.initializer:
            if item.name not in self.tensors:
                small.append(item)
                continue
            tensor = self.tensors[item.name][1]
            item.ClearField("external_data")
            item.ClearField("data_location")
            head = item.SerializeToString() + _tag(9, tensor.nbytes)  # TensorProto.raw_data
            weights.append(
                (_tag(5, len(head) + tensor.nbytes) + head, tensor)
            )  # GraphProto.initializer
        kept = [item.SerializeToString() for item in small]
        del graph.initializer[:]
        body = graph.SerializeToString() + b"".join(_tag(5, len(item)) + item for item in kept)
        self.proto.ClearField("graph")
        total = len(body) + sum(len(head) + tensor.nbytes for head, tensor in weights)
        file.write(self.proto.SerializeToString() + _tag(7, total) + body)  # ModelProto.graph
        for head, tensor in weights:
            file.write(head)
            _write_tensor(tensor, file)


def _tag(field: int, length: int) -> bytes:
    """Key and length of a length-delimited protobuf field."""
    out = bytearray([field << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out)


def _write_tensor(tensor: Any, file: IO[bytes]) -> None:
    before = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() - before != tensor.nbytes:
        raise ExportError(f"the weight `{tensor.name}` was not written whole")
