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
from normfold.targets.tensorrt.backend import Gpu, find, probe
from normfold.targets.tensorrt.builder import Binding, make_logger, type_name
from normfold.targets.tensorrt.messages import tidy
from normfold.targets.tensorrt.sidecar import Sidecar

_INSPECTED = {
    "FP32": "float32",
    "FLOAT": "float32",
    "FP16": "float16",
    "HALF": "float16",
    "BF16": "bfloat16",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "FP8": "fp8",
    "FP8E4M3": "fp8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


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
        self.path, self.sidecar = path, Sidecar.read(path)
        device = probe()
        if not isinstance(device, Gpu):
            raise EnvironmentMissing(
                "engines run on a GPU, and there is none", where=str(path), found=device
            )
        backend = find(self.sidecar.builder)
        self.sidecar.check(path, backend.version, device.arch)
        self._trt, self._log = backend.trt, make_logger(backend.trt)
        self._runtime = backend.trt.Runtime(self._log)
        # a version-compatible engine carries the runtime that it was built for
        self._runtime.engine_host_code_allowed = "--version-compatible" in self.sidecar.flags
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            found = "; ".join(text for level, text in self._log.lines if level != "WARNING")
            raise ExportError("the engine cannot be opened", where=str(path), found=tidy(found))
        self._context: Any = None
        self.runtime = f"{backend.name} {backend.version}, {device.name}"

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Inputs and outputs as the engine has them."""
        engine, found = self._engine, []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode = str(engine.get_tensor_mode(name)).rsplit(".", 1)[-1].lower()
            dtype = type_name(engine.get_tensor_dtype(name))
            found.append(Binding(name, mode, dtype, tuple(engine.get_tensor_shape(name))))
        return tuple(found)

    def layers(self) -> dict[str, int]:
        """Layers by the type of their first output, as the inspector lists them."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        counts: Counter[str] = Counter()
        for layer in json.loads(text).get("Layers", []):
            outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
            if outputs:
                counts[_layer_type(str(outputs[0].get("Format/Datatype", "")))] += 1
        return dict(counts.most_common())

    def run(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs in the engine's order, on the CPU, for inputs in its order or by name.

        Raises:
            EnvironmentMissing: torch is a build without CUDA.
            UsageError: the engine was not built for inputs of these shapes.
            ExportError: the engine failed to run.
        """
        _require_cuda()
        if self._context is None:
            self._context = self._engine.create_execution_context()
        outputs, call = self._bind(self._context, inputs)
        call()
        torch.cuda.synchronize()
        return [output.cpu() for output in outputs]

    def prepare(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Callable[[], object]:
        """A forward pass on these inputs, which are put on the GPU once; raises as `run`.

        It has a context of its own, and returns before the GPU is done.
        """
        _require_cuda()
        return self._bind(self._engine.create_execution_context(), inputs)[1]

    def _bind(
        self, context: Any, inputs: Sequence[Tensor] | Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Callable[[], object]]:
        names = [binding.name for binding in self.bindings if binding.kind == "input"]
        given = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        kept, outputs = [], []
        for name in names:
            tensor = given[name].detach().cuda().contiguous()
            kept.append(tensor)
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise UsageError(
                    "the engine was not built for this shape",
                    where=str(self.path),
                    found=f"`{name}`: {_text(tensor.shape)}",
                    hint=self._takes(name),
                )
            context.set_tensor_address(name, tensor.data_ptr())
        for binding in self.bindings:
            if binding.kind == "output":
                shape = tuple(context.get_tensor_shape(binding.name))
                if min(shape, default=1) < 0:
                    raise ExportError(
                        "the size of an output depends on data", where=f"`{binding.name}`"
                    )
                dtype = getattr(torch, binding.dtype)
                outputs.append(torch.empty(shape, dtype=dtype, device="cuda"))
                context.set_tensor_address(binding.name, outputs[-1].data_ptr())
        torch.cuda.synchronize()  # the inputs are there
        stream = (
            torch.cuda.Stream()
        )  # on the default one the library waits before and after each run

        def call() -> object:
            if not context.execute_async_v3(stream.cuda_stream):
                raise ExportError("the engine failed to run", where=str(self.path))
            return kept, outputs  # the GPU reads and writes them

        return outputs, call

    def _takes(self, name: str) -> str | None:
        shapes = self.sidecar.profile.get(name)
        return f"it takes {_text(shapes[0])} to {_text(shapes[2])}" if shapes else None


def _require_cuda() -> None:
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            "torch carries an engine's inputs and outputs, and sees no GPU",
            hint="install a build of torch with CUDA",
        )


def _layer_type(text: str) -> str:
    """``Row major linear FP16 format`` or ``Half`` as ``float16``: what the inspector says differs by version."""
    words = text.upper().split()
    return next(
        (_INSPECTED[word] for word in words if word in _INSPECTED), text.lower() or "unknown"
    )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


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
