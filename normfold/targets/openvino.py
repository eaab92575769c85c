"""Run a file in OpenVINO on the CPU, with torch tensors, and write it in OpenVINO's own format."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.files import atomic
from normfold.targets.feeds import by_name, fed

Precision = Literal["f32", "bf16", "f16", "auto"]
_TYPES = {  # OpenVINO's names and onnxruntime's, which signatures are written in
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "bf16": "tensor(bfloat16)",
    "f64": "tensor(double)",
    "i8": "tensor(int8)",
    "i16": "tensor(int16)",
    "i32": "tensor(int32)",
    "i64": "tensor(int64)",
    "u8": "tensor(uint8)",
    "boolean": "tensor(bool)",
}
_NO_KERNELS = {"Const", "Input", "Output"}
_PLACES = re.compile(r"(?:Exception from|Check '[^\n]*' failed at) \S+:\d+:?\s*")
_BLAME = re.compile(r"FrontEnd API failed with \w+:\s*")


@dataclass(frozen=True)
class Kernel:
    """One step of what OpenVINO made of a file.

    Attributes:
        kind: ``Convolution``, ``FullyConnected``, ``Eltwise``.
        takes: the type of its first input: ``u8`` and ``i8`` where it computes in integers. Weights may be
            integers beside an ``f32``.
        gives: the type of its first output.
        implementation: the plugin's name for the code that runs: ``brgconv_avx512_I8``.
        nodes: nodes of the file that are computed in it.
    """

    kind: str
    takes: str
    gives: str
    implementation: str
    nodes: tuple[str, ...]


class OpenvinoSession:
    """One compiled model on OpenVINO's CPU device.

    What the file says is float32 is computed in float32. OpenVINO's own default is not that: on processors with
    bfloat16 it computes there (errors of some 1e-3), and in matrix products with weights of 4 or 8 bits it puts
    the inputs on a grid of 8 bits as well. ``precision`` and ``group`` ask for either. Files with grids of 8 bits
    on weights and activations run in the plugin's integer kernels whatever ``precision`` is.

    Two things are the device's and cannot be asked away: float64 is computed in float32, and int64 in 32 bits.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` of an IR, whose ``.bin`` lies beside it.
        precision: what float32 is computed in; ``"auto"`` leaves it to OpenVINO.
        threads: threads of a run; by default what OpenVINO takes.
        group: how many inputs of a matrix product share a grid of 8 bits, which is found at run time, where its
            weights are integers; 0 for none. OpenVINO's own default is 32. It has no effect on blocks of weights
            that are smaller.

    Raises:
        EnvironmentMissing: openvino is not installed, or cannot compute in ``precision`` on this machine.
        ExportError: OpenVINO refuses the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        precision: Precision = "f32",
        threads: int | None = None,
        group: int = 0,
    ) -> None:
        if precision not in get_args(Precision):
            raise UsageError(
                f"there is no precision `{precision}`", hint=", ".join(get_args(Precision))
            )
        self._ov = _openvino()
        # one process of several on these cores: pinned threads would queue for the same one
        config: dict[str, Any] = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "ENABLE_CPU_PINNING": False,
        }
        if precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = precision
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        model = _read(path)
        try:
            self._compiled = self._ov.Core().compile_model(model, "CPU", config)
        except Exception as error:  # the binding raises a dozen types without a common base
            raise _refused(error, path) from error
        taken = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision not in ("auto", taken):  # it falls back by itself
            raise EnvironmentMissing(
                f"OpenVINO cannot compute in `{precision}` on this machine",
                found=f"it took {taken}",
            )
        self.path, self.precision = path, taken
        self._inputs, self._outputs = list(self._compiled.inputs), list(self._compiled.outputs)
        self.input_names = tuple(str(port.get_any_name()) for port in self._inputs)
        self.output_names = tuple(str(port.get_any_name()) for port in self._outputs)
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs in the file's order, in the file's types, for inputs in its order (or by name).

        Tensors must have the file's types: nothing is cast. bfloat16 goes in and out by its bits.

        Raises:
            UsageError: these are not the file's inputs, or an int64 does not fit into 32 bits.
            ExportError: OpenVINO refuses their types or shapes.
        """
        self._give(self._request, inputs)
        try:
            self._request.infer(share_outputs=True)
        except Exception as error:
            raise _refused(error, self.path) from error
        results = [self._request.get_output_tensor(place) for place in range(len(self._outputs))]
        return [_tensor(result) for result in results]

    def prepare(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Callable[[], object]:
        """A forward pass on these inputs, which are converted once; outputs stay the runtime's own."""
        request = self._compiled.create_infer_request()
        self._give(request, inputs)
        return lambda: request.infer(share_outputs=True)

    def signature(self) -> list[tuple[str, tuple[int | str | None, ...], str]]:
        """Name, shape (None where a size is free) and type (``tensor(float)``) of each input."""
        found: list[tuple[str, tuple[int | str | None, ...], str]] = []
        for name, port in zip(self.input_names, self._inputs, strict=True):
            sizes = tuple(
                None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape
            )
            kind = str(port.get_element_type().get_type_name())
            found.append((name, sizes, _TYPES.get(kind, f"tensor({kind})")))
        return found

    def kernels(self) -> list[Kernel]:
        """What runs, without constants."""
        found = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
            if info["layerType"] in _NO_KERNELS:
                continue
            takes, gives = (
                str(ports[0].get_element_type().get_type_name()) if ports else ""
                for ports in (op.inputs(), op.outputs())
            )
            nodes = tuple(name for name in info["originalLayersNames"].split(",") if name)
            found.append(Kernel(info["layerType"], takes, gives, info["primitiveType"], nodes))
        return found

    def _give(self, request: Any, inputs: Any) -> None:
        named = by_name(inputs, self.input_names)
        for place, name in enumerate(self.input_names):
            tensor = named[name].detach().cpu().contiguous()
            _require_narrow(name, tensor)
            try:
                request.set_input_tensor(place, self._value(tensor))
            except Exception as error:
                raise _refused(error, self.path) from error

    def _value(self, tensor: Tensor) -> Any:
        if tensor.dtype != torch.bfloat16:
            return self._ov.Tensor(tensor.numpy())
        value = self._ov.Tensor(self._ov.Type.bf16, self._ov.Shape(tensor.shape))
        # numpy has no bfloat16: the binding shows the bits as float16
        value.data[...] = tensor.view(torch.int16).numpy().view(np.float16)
        return value


def runs(path: str | os.PathLike[str]) -> Iterator[tuple[str, Callable[..., list[Tensor]]]]:
    """An ONNX file or an IR, in float32.

    Raises:
        EnvironmentMissing, ExportError: as `OpenvinoSession`.
    """
    session = OpenvinoSession(path)
    yield "openvino", fed(session)


def write_ir(onnx_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> list[Path]:
    """Convert an ONNX file into OpenVINO's format: the ``.xml`` file ``path`` and its ``.bin``, in this order.

    Weights keep their types. Older files stay until the new ones are complete.

    Raises:
        EnvironmentMissing: openvino is not installed.
        UsageError: ``path`` has another ending, or its folder does not exist.
        ExportError: OpenVINO refuses the file, or the files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise UsageError("an OpenVINO model is an `.xml` file", where=str(path))
    if not path.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(path.parent))
    openvino, model, weights = _openvino(), _read(onnx_path), path.with_suffix(".bin")
    try:
        with (
            atomic(weights, path) as files,
            tempfile.TemporaryDirectory(prefix=".normfold-", dir=path.parent) as folder,
        ):
            made = Path(folder) / path.name  # OpenVINO chooses both names by this one
            openvino.save_model(model, made, compress_to_fp16=False)
            for file, source in zip(files, (made.with_suffix(".bin"), made), strict=True):
                with open(source, "rb") as written:
                    os.fsync(written.fileno())
                os.replace(source, file.name)
    except Exception as error:  # serialisation has no error type of its own
        raise ExportError(
            "the OpenVINO model could not be written", where=str(path), found=_text(error)
        ) from error
    return [path, weights]


def runtime_name() -> str:
    """``openvino 2026.4``.

    Raises:
        EnvironmentMissing: openvino is not installed.
    """
    version = str(_openvino().get_version()).split("-")[0]
    return f"openvino {'.'.join(version.split('.')[:2])}"


def _openvino() -> Any:
    """The package, without its telemetry.

    On import it reports to its makers and leaves two files in the home folder, unless ``openvino_telemetry`` is
    missing: then it has a stand-in that does nothing.
    """
    modules: dict[str, Any] = sys.modules
    hidden = {} if "openvino" in modules else {"openvino_telemetry": None}
    before = {name: modules[name] for name in hidden if name in modules}
    modules.update(hidden)
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise EnvironmentMissing(
            "openvino is not installed", found=str(error), hint="`pip install 'normfold[openvino]'`"
        ) from error
    finally:
        for name in hidden:
            modules.pop(name, None)
        modules.update(before)
    return openvino


def _read(path: str | os.PathLike[str]) -> Any:
    """The model of a file, by its own reader: asked for any, OpenVINO tries all, and each prints to stderr."""
    manager = _openvino().frontend.FrontEndManager()
    try:
        reader = manager.load_by_framework("ir" if Path(path).suffix == ".xml" else "onnx")
        return reader.convert(reader.load(os.fspath(path)))
    except Exception as error:
        raise _refused(error, path) from error


def _require_narrow(name: str, tensor: Tensor) -> None:
    """OpenVINO would take the lower half of each number."""
    if tensor.dtype != torch.int64 or not tensor.numel():
        return
    low, high, narrow = int(tensor.min()), int(tensor.max()), torch.iinfo(torch.int32)
    if low < narrow.min or high > narrow.max:
        raise UsageError(
            f"`{name}` does not fit into 32 bits, in which OpenVINO computes int64",
            found=f"{low} to {high}",
        )


def _tensor(value: Any) -> Tensor:
    data = np.array(value.data)  # a copy: the next run writes there
    if value.element_type.get_type_name() == "bf16":
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(data)


def _refused(error: Exception, path: str | os.PathLike[str]) -> ExportError:
    text = _text(error)
    lacks = "No conversion rule" in text or "does not support the following" in text
    hint = "write the file at an older opset, or install a newer OpenVINO" if lacks else None
    return ExportError(
        "OpenVINO refuses the file or the inputs", where=str(path), found=text, hint=hint
    )


def _text(error: Exception) -> str:
    """What an error says, without the lines of OpenVINO's own source."""
    text = _BLAME.sub("", _PLACES.sub("", str(error)))
    return " ".join(text.split())[:500] or type(error).__name__
