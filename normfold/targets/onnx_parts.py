"""An ONNX file as a network of named tensors: run with values in the place of some, and cut between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normfold.targets.feeds import fed
from normfold.targets.probes import path_of
from normfold.targets.runtime import RuntimeSession

_OF_SHAPES = ("Shape", "Size")


class OnnxNetwork:
    """A file, run by onnxruntime without optimisations.

    Attributes:
        inputs, outputs: names of tensors, in the file's order.
        suffix: of the files that `write` makes.

    Raises:
        EnvironmentMissing, ExportError: as `RuntimeSession`, at the first run.
    """

    suffix = ".onnx"

    def __init__(self, path: Path) -> None:
        import onnx

        self._model = onnx.load(path)
        graph = self._model.graph
        self._empty = onnx.ModelProto()  # all but what is in the graph
        self._empty.CopyFrom(self._model)
        for field in ("input", "output", "node", "initializer", "value_info"):
            del getattr(self._empty.graph, field)[:]
        self._weights = {item.name: item for item in graph.initializer}
        self.inputs = tuple(item.name for item in graph.input if item.name not in self._weights)
        self.outputs = tuple(item.name for item in graph.output)
        self._maker = {name: node for node in graph.node for name in node.output if name}
        self._data = set(self.inputs)  # names whose values depend on more than shapes
        for node in graph.node:
            if node.op_type not in _OF_SHAPES and self._data.intersection(_read(node)):
                self._data.update(node.output)
        self._values: dict[str, Tensor] = {}

    def path(self, name: str) -> str:
        """The module that a tensor is made in."""
        node = self._maker.get(name)
        return path_of(node) if node is not None else ""

    def op(self, name: str) -> str:
        """The op that makes a tensor."""
        return str(self._maker[name].op_type)

    def operands(self, name: str) -> list[str]:
        """The tensors that the op which makes one reads, of those that depend on the inputs."""
        node = self._maker.get(name)
        return [] if node is None else [item for item in _read(node) if item in self._data]

    def run(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every tensor that depends on the inputs, in order."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        given = {item.name for item in model.graph.output}
        made = [name for node in model.graph.node for name in node.output if name]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made if n not in given)
        values = dict(zip(self.inputs, leaves, strict=True)) | self._run(model, leaves)
        self._values = values
        return {name: values[name] for name in (*self.inputs, *made) if name in self._data}

    def outputs_with(self, leaves: Sequence[Tensor], name: str, value: Tensor) -> list[Tensor]:
        """The outputs where one tensor is another; behind `run` on the same inputs.

        What is in front of it, or beside it, is not run again.
        """
        later, read = {name}, set[str]()
        for node in self._model.graph.node:
            if later.intersection(operands := _read(node)):
                later.update(set(node.output) - {""})
                read.update(operands)
        given = {item: x for item, x in self._values.items() if item in (read & self._data) - later}
        if name in read:
            given[name] = value
        found, asked = (
            {**self._values, name: value},
            [y for y in self.outputs if y in later - {name}],
        )
        if asked:
            found |= self._run(self._part(given, asked), list(given.values()))
        return [found[output] for output in self.outputs]

    def write(self, path: Path, given: Mapping[str, Tensor], output: str) -> None:
        """Write the ops between some tensors and another as a file of their own; behind `run`."""
        import onnx

        onnx.save(self._part(given, [output]), path)

    def _run(self, model: Any, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part.onnx"
            onnx.save(model, path, save_as_external_data=model.ByteSize() > 1 << 30)
            session: Any = RuntimeSession(path, "none")
            values = fed(session)(leaves)
        return dict(zip(session.output_names, values, strict=True))

    def _part(self, given: Mapping[str, Tensor], outputs: Iterable[str]) -> Any:
        import onnx
        from onnx import helper, numpy_helper

        part = onnx.ModelProto()
        part.CopyFrom(self._empty)
        graph, wanted, stack = part.graph, set[str](), list(outputs)
        while stack:
            name = stack.pop()
            if name in wanted:
                continue
            wanted.add(name)
            if name not in given and name in self._maker and not self._known(name):
                stack += _read(self._maker[name])
        for name in wanted.difference(given):
            if name in self._weights:
                graph.initializer.append(self._weights[name])
            elif self._known(name):  # made of shapes, which are fixed in a part
                graph.initializer.append(numpy_helper.from_array(self._values[name].numpy(), name))
        stored = {item.name for item in graph.initializer}
        for node in self._model.graph.node:
            made = wanted.intersection(node.output) - stored - given.keys()
            if made:
                graph.node.append(node)
        for place, names in ((graph.input, given), (graph.output, outputs)):
            for name in names:
                value = given.get(name, self._values.get(name))
                assert value is not None
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(_name(value.dtype)))
                place.append(helper.make_tensor_value_info(name, kind, tuple(value.shape)))
        return part

    def _known(self, name: str) -> bool:
        """True for what was computed of shapes alone."""
        return name in self._maker and name not in self._data and name in self._values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read(node: Any) -> list[str]:
    """What a node reads, and the graphs within it."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found += _read(inner)
    return found
