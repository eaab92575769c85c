"""Open a built engine again: are its inputs, outputs and types what was asked? With a GPU, run it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.export.tensorrt.backend import find, gpu
from normfold.export.tensorrt.builder import Binding, _logger, type_name
from normfold.export.tensorrt.sidecar import Sidecar


class Engine:
    """A deserialised engine on this machine's GPU.

    Args:
        path: the engine file; its sidecar ``<path>.json`` is read and checked first.

    Raises:
        EnvironmentMissing: no GPU, or no library that reads this engine.
        UsageError: the file is not what its sidecar says, or was built for another version or GPU.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.sidecar = Sidecar.read(path)
        device = gpu()
        if device is None:
            raise EnvironmentMissing("engines run on a GPU, and there is none", where=str(path))
        backend = find(self.sidecar.builder)
        assert backend is not None
        self.sidecar.check(path, backend.version, device.arch)
        self.path, self._log = path, _logger(backend.trt)
        self._runtime = backend.trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            found = "; ".join(text for level, text in self._log.lines if level != "WARNING")
            raise ExportError("the engine cannot be opened", where=str(path), found=found[:400])
        self._context: Any = None
        self._trt = backend.trt

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Inputs and outputs as the engine has them."""
        engine, found = self._engine, []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode = str(engine.get_tensor_mode(name)).rsplit(".", 1)[-1].lower()
            dtype, shape = (
                type_name(engine.get_tensor_dtype(name)),
                tuple(engine.get_tensor_shape(name)),
            )
            found.append(Binding(name, mode, dtype, shape))
        return tuple(found)

    def layers(self) -> dict[str, int]:
        """Layers by the type of their first output, as the inspector lists them."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        counts: Counter[str] = Counter()
        for layer in json.loads(text).get("Layers", []):
            outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
            if outputs:
                counts[str(outputs[0].get("Format/Datatype", "unknown"))] += 1
        return dict(counts.most_common())

    def run(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs in the engine's order, on the CPU, for inputs in its order or by name."""
        outputs, call = self._bind(inputs)
        call()
        torch.cuda.synchronize()
        return [output.cpu() for output in outputs]

    def prepare(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Callable[[], object]:
        """A forward pass on these inputs, which are put on the GPU once."""
        return self._bind(inputs)[1]

    def _bind(
        self, inputs: Sequence[Tensor] | Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Callable[[], object]]:
        if not torch.cuda.is_available():
            raise EnvironmentMissing(
                "this torch is built without CUDA, and carries the engine's inputs and outputs",
                hint="install a CUDA build of torch",
            )
        if self._context is None:
            self._context = self._engine.create_execution_context()
        context, bindings = self._context, self.bindings
        names = [binding.name for binding in bindings if binding.kind == "input"]
        given = (
            dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        )
        kept = []
        for name in names:
            tensor = given[name].detach().cuda().contiguous()
            kept.append(tensor)
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise UsageError(
                    "the engine was not built for this shape",
                    where=str(self.path),
                    found=f"`{name}`: {tuple(tensor.shape)}",
                    hint=f"it takes {self.sidecar.profile.get(name, 'what the sidecar says')}",
                )
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for binding in bindings:
            if binding.kind == "output":
                shape = tuple(context.get_tensor_shape(binding.name))
                outputs.append(
                    torch.empty(shape, dtype=getattr(torch, binding.dtype), device="cuda")
                )
                context.set_tensor_address(binding.name, outputs[-1].data_ptr())
        stream = torch.cuda.current_stream()

        def call() -> object:
            if not context.execute_async_v3(stream.cuda_stream):
                raise ExportError("the engine failed to run", where=str(self.path))
            return (kept, outputs)

        return outputs, call


def compare(asked: Sequence[Binding], found: Sequence[Binding]) -> list[str]:
    """Where inputs and outputs are not what was asked for, in words."""
    there, wrong = {binding.name: binding for binding in found}, []
    for binding in asked:
        other = there.pop(binding.name, None)
        if other is None:
            wrong.append(f"no {binding.kind} `{binding.name}`")
        elif other != binding:
            for part in ("kind", "dtype", "shape"):
                if getattr(other, part) != getattr(binding, part):
                    wrong.append(
                        f"`{binding.name}` has {part} {getattr(other, part)}, not {getattr(binding, part)}"
                    )
    return wrong + [f"an {binding.kind} `{name}` too many" for name, binding in there.items()]
