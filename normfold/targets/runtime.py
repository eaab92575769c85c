"""Run an exported ONNX file in onnxruntime, with torch tensors or numpy arrays."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.dlpack
from torch import Tensor

from normfold.errors import EnvironmentMissing, ExportError, NormfoldError, UsageError
from normfold.targets.feeds import by_name, fed

Level = Literal["all", "none"]
_CPU = "CPUExecutionProvider"
_LACKING = re.compile(r"implementation for (\w+)\(")
_BFLOAT16 = 16  # TensorProto.BFLOAT16


class NoKernel(EnvironmentMissing):
    """This runtime does not run the file; another may."""


class RuntimeSession:
    """One onnxruntime session, on the CPU unless another provider is named.

    Args:
        path: the ONNX file.
        level: ``"all"`` runs every graph optimisation of onnxruntime, ``"none"`` runs the file as it is. So are
            files with 8-bit floats always run: some optimisations take these for integers, and give wrong numbers
            (1.31).
        threads: threads within one op; by default what onnxruntime takes.
        provider: the execution provider, by onnxruntime's name for it.
        spin: threads that wait within a run spin, as is onnxruntime's default: faster where no one shares the
            cores. They never do between runs.
        profile: every run is profiled, into a file whose name begins with this path (`end_profile`).
        optimised: a file for the model as it is run.

    Raises:
        EnvironmentMissing: onnxruntime is not installed, or cannot use the provider on this machine.
        NoKernel: it has none for an op of the file in its type (which is so for most ops in bfloat16 on the CPU).
        ExportError: onnxruntime refuses the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        level: Level = "all",
        threads: int | None = None,
        provider: str = _CPU,
        spin: bool = False,
        profile: str | os.PathLike[str] | None = None,
        optimised: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentMissing(
                "onnxruntime is not installed", hint="`pip install onnxruntime`"
            ) from error
        levels = onnxruntime.GraphOptimizationLevel
        if level not in ("all", "none"):
            raise UsageError(f"there is no optimisation level `{level}`", hint="`all` or `none`")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL
            if level == "all" and not _float8(path)
            else levels.ORT_DISABLE_ALL
        )
        options.log_severity_level = (
            3  # errors: warnings on stderr would land in the user's terminal
        )
        # no spinning, as for torch; or none that a run leaves behind for the next one elsewhere
        entry = "session.force_spinning_stop" if spin else "session.intra_op.allow_spinning"
        options.add_session_config_entry(entry, "1" if spin else "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
        if optimised is not None:
            options.optimized_model_filepath = os.fspath(optimised)
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=list(dict.fromkeys((provider, _CPU)))
            )
        except Exception as error:  # the binding raises a dozen types without a common base
            raise _refused(error, path) from error
        if self._session.get_providers()[0] != provider:  # it falls back to the CPU by itself
            raise EnvironmentMissing(
                f"onnxruntime cannot use `{provider}` on this machine",
                found=f"it took {', '.join(self._session.get_providers())}",
                hint="`onnxruntime.get_available_providers()` lists what the installed package was built with",
            )
        self._ort = onnxruntime
        self.path, self.level = path, level
        self.input_names = tuple(item.name for item in self._session.get_inputs())
        self.output_names = tuple(item.name for item in self._session.get_outputs())

    def run(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs in the file's order, in the file's types, for inputs in its order (or by name).

        Tensors must have the file's types: nothing is cast. bfloat16 goes in and out by its bits.
        """
        feeds = {
            name: self._value(tensor) for name, tensor in by_name(inputs, self.input_names).items()
        }
        try:
            results = self._session.run_with_ort_values(None, feeds)
        except Exception as error:
            raise _refused(error, self.path) from error
        return [_tensor(result) for result in results]

    def prepare(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Callable[[], object]:
        """A forward pass on these inputs, which are converted once; outputs stay the runtime's own."""
        feeds = {
            name: self._value(tensor) for name, tensor in by_name(inputs, self.input_names).items()
        }
        return lambda: self._session.run_with_ort_values(None, feeds)

    def end_profile(self) -> str:
        """Write the profile of all runs so far, as a trace of Chrome's, and return its path."""
        return str(self._session.end_profiling())

    def signature(self) -> list[tuple[str, tuple[int | str | None, ...], str]]:
        """Name, shape (a text or None where a size is free) and type (``tensor(float)``) of each input."""
        inputs = self._session.get_inputs()
        return [(item.name, tuple(item.shape), item.type) for item in inputs]

    def _value(self, tensor: Tensor) -> Any:
        value = self._ort.OrtValue
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            bits = tensor.view(torch.int16).numpy().view(np.uint16)
            return value.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
        return value.ortvalue_from_numpy(tensor.numpy())


def optimised(path: str | os.PathLike[str], made: str | os.PathLike[str]) -> None:
    """Write the model that onnxruntime makes of a file with all of its optimisations, for this processor.

    Raises:
        EnvironmentMissing, ExportError: as `RuntimeSession`.
    """
    RuntimeSession(path, optimised=made)


def _float8(path: str | os.PathLike[str]) -> bool:
    """True if an ONNX file has tensors of 8-bit floats; of what is not an ONNX file onnxruntime says so itself."""
    file = Path(path)
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
        if held.find(b"DequantizeLinear") < 0:  # most files, which need not be parsed
            return False
    import onnx

    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
    except Exception:  # protobuf's own, without a type in its stubs; onnxruntime says what is wrong
        return False
    constants = (item.t for node in graph.node for item in node.attribute if item.HasField("t"))
    kinds = {item.data_type for item in (*graph.initializer, *constants)}
    return any(onnx.TensorProto.DataType.Name(kind).startswith("FLOAT8") for kind in kinds)


def runs(path: str | os.PathLike[str]) -> Iterator[tuple[str, Callable[..., list[Tensor]]]]:
    """An ONNX file with all of onnxruntime's graph optimisations, and with none; with 8-bit floats with none only.

    Raises:
        EnvironmentMissing, ExportError: as `RuntimeSession`.
    """
    levels: tuple[Level, ...] = ("none",) if _float8(path) else ("all", "none")
    for level in levels:
        session: Any = RuntimeSession(path, level)
        yield f"onnxruntime-{level}", fed(session)
        del session  # before the next one reads the weights again


def run_onnx(
    path: str | os.PathLike[str],
    feeds: Mapping[str, npt.NDArray[Any]] | Sequence[npt.NDArray[Any]],
    level: Level = "all",
    threads: int | None = None,
) -> list[npt.NDArray[Any]]:
    """Outputs of an ONNX file for numpy inputs, by name or in the file's order.

    Raises:
        EnvironmentMissing, ExportError: as `RuntimeSession`.
        UsageError: the inputs are not those of the file.
    """
    session = RuntimeSession(path, level, threads)
    try:
        return list(session._session.run(None, by_name(feeds, session.input_names)))
    except (EnvironmentMissing, ExportError, UsageError):
        raise
    except Exception as error:
        raise _refused(error, path) from error


def _tensor(value: Any) -> Tensor:
    if value.element_type() == _BFLOAT16:
        return torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).clone()
    return torch.from_numpy(np.array(value.numpy()))


def _refused(error: Exception, path: str | os.PathLike[str]) -> NormfoldError:
    text = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
    if "NOT_IMPLEMENTED" in text or "NotImplemented" in type(error).__name__:
        match = _LACKING.search(text)
        op = f"`{match[1]}`" if match else "an op of this file"
        return NoKernel(
            f"onnxruntime has no CPU kernel for {op} in its type",
            where=str(path),
            found=text,
            hint="where it computes in half precision, `--precision fp32` computes in float32",
        )
    return ExportError("onnxruntime refuses the file or the inputs", where=str(path), found=text)
