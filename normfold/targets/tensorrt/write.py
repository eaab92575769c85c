"""A TensorRT engine: the strongly typed ONNX file, the engine that is built from it, and its sidecar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.ir import Graph
from normfold.ir.graph import is_symbolic
from normfold.job import EngineOptions
from normfold.progress import Progress
from normfold.report import EngineReport
from normfold.report.events import Missing, Noted
from normfold.target import TARGETS, Target
from normfold.targets import runtime
from normfold.targets.files import export
from normfold.targets.order import Draft, Order, Run, Runs, sha256
from normfold.targets.tensorrt.backend import Backend, Gpu, find, gpu, probe
from normfold.targets.tensorrt.builder import Binding, build
from normfold.targets.tensorrt.engine import Engine, compare
from normfold.targets.tensorrt.profiles import profile
from normfold.targets.tensorrt.script import build_script, trtexec
from normfold.targets.tensorrt.sidecar import Sidecar


def write_engine(order: Order) -> Iterator[Draft]:
    """The typed ONNX file, judged in onnxruntime before anything is built, then the engine.

    Without a builder, a script that builds the engine elsewhere takes the engine's place.

    Raises:
        UsageError, ExportError: as the parts.
    """
    backend, missing = builder(order.engine)
    order = replace(order, target=wanted(order.engine, backend))
    exported = export(order, ".trt.onnx")
    onnx, engine = exported.path, order.path(".engine")
    asked = _asked(
        order.graph, exported.census.dynamic, exported.input_names, exported.output_names
    )
    sidecar = _sidecar(order, onnx, asked, exported.census.dynamic)
    yield Draft(onnx, "onnxruntime", lambda: runtime.runs(onnx), exported.files[1:])
    if backend is None:
        assert missing is not None
        _write_script(engine, sidecar, order, missing)
        return
    order.say(Progress("building the engine"))
    built = build(
        onnx, backend, order.engine, sidecar.profile, origins=exported.origins, say=order.say
    )
    require_same(asked, built.bindings, engine)
    engine.write_bytes(built.plan)
    device = gpu()
    sidecar = replace(
        sidecar,
        builder=backend.name,
        version=backend.version,
        gpu=device.name if device is not None and backend.name == "tensorrt" else None,
        targets=backend.targets(order.engine),
        sha256=built.sha256,
        layers=built.layers,
    )
    path = Sidecar.path_of(engine)
    path.write_text(sidecar.to_json())
    report = EngineReport(
        name=engine.name,
        builder=sidecar.builder,
        version=sidecar.version,
        targets=sidecar.targets,
        profile=dict(sidecar.profile),
        layers=sidecar.layers,
        size=len(built.plan),
        seconds=built.seconds,
    )
    order.emit(report)
    for text in built.warnings:
        order.emit(Noted(f"builder: {text}"))
    yield Draft(
        engine,
        order.target.runtime,
        lambda: engine_runs(engine, sidecar, asked, report, order),
        (path,),
    )


def engine_runs(
    engine: Path, sidecar: Sidecar, asked: list[Binding], report: EngineReport, order: Order
) -> Runs:
    """Open the engine again, compare it with what was asked for, and give a run.

    Raises:
        EnvironmentMissing: there is no GPU that it is for, no CUDA in torch, or inputs beyond the profile.
        ExportError: inputs, outputs or types are not what was asked for.
    """
    device = probe()
    if not isinstance(device, Gpu):
        raise EnvironmentMissing(device)
    if not sidecar.fits(device.arch):
        raise EnvironmentMissing(f"it is not for {device.name}, {device.arch}")
    opened = Engine(engine)
    require_same(asked, opened.bindings, engine)
    report = replace(report, opened=True, layers=opened.layers())
    order.emit(report)

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            outputs = opened.run(inputs)
        except UsageError as error:  # sizes beyond the profile
            raise EnvironmentMissing(error.what, found=error.found) from error
        order.emit(replace(report, ran=True))
        return outputs

    ready: Run = run
    yield "tensorrt", ready


def wanted(options: EngineOptions, backend: Backend | None) -> Target:
    """The target that a typed ONNX file is written for: the builder's, or what an absent one would want."""
    if backend is not None:
        return backend.target
    name = options.backend if options.backend != "auto" else ""
    name = name or ("tensorrt-rtx" if options.gpu_arch else "tensorrt")
    return next(row for row in TARGETS.values() if row.builder == name)


def builder(options: EngineOptions) -> tuple[Backend | None, EnvironmentMissing | None]:
    """The builder, or what is missing.

    Raises:
        UsageError: options that the builder of this machine has not.
    """
    try:
        backend = find(options.backend)
    except EnvironmentMissing as error:
        return None, error
    backend.check(options)
    return backend, None


def _sidecar(
    order: Order, onnx: Path, asked: Sequence[Binding], dynamic: Mapping[str, Any]
) -> Sidecar:
    symbols = {
        item.name: [dynamic.get(item.name, {}).get(at, size) for at, size in enumerate(item.shape)]
        for item in asked
        if item.kind == "input"
    }
    shapes, notes = profile(
        symbols, _examples(order.graph), dict(order.ranges), _limits(order.graph)
    )
    for note in notes:
        order.emit(Noted(note))
    return Sidecar(
        flags=order.engine.flags(),
        onnx=onnx.name,
        onnx_sha256=sha256(onnx),
        precision=order.precision,
        bindings=tuple(asdict(binding) for binding in asked),
        profile=dict(shapes),
        input_normalisation=order.normalisation,
        normfold=_version(),
    )


def require_same(asked: Sequence[Binding], found: Sequence[Binding], engine: Path) -> None:
    if wrong := compare(asked, found):
        wide = any(binding.dtype == "float64" for binding in asked)
        raise ExportError(
            "the engine's inputs and outputs are not what was asked for",
            where=engine.name,
            found="; ".join(wrong),
            hint="TensorRT has no float64: give the network float32 inputs" if wide else None,
        )


def _asked(
    graph: Graph, dynamic: Any, input_names: Sequence[str], output_names: Sequence[str]
) -> list[Binding]:
    """Inputs and outputs of the graph as an engine should have them."""
    found = []
    values = dict(zip(graph.input_names, _values(graph), strict=True))
    inputs = [values[name] for name in graph.input_names if isinstance(values[name], Tensor)]
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    results = [leaf.meta["val"] for leaf in pytree.tree_leaves(outputs) if hasattr(leaf, "meta")]
    for kind, names, tensors in (("input", input_names, inputs), ("output", output_names, results)):
        for name, tensor in zip(names, tensors, strict=True):
            free = dynamic.get(name, {})
            shape = tuple(
                -1 if axis in free or is_symbolic(size) else int(size)
                for axis, size in enumerate(tensor.shape)
            )
            dtype = str(tensor.dtype).removeprefix("torch.")
            found.append(Binding(name, kind, dtype, shape))
    return found


def _values(graph: Graph) -> list[Any]:
    return [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]


def _examples(graph: Graph) -> dict[str, tuple[int, ...]]:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    pairs = zip(graph.input_names, leaves, strict=True)
    return {name: tuple(leaf.shape) for name, leaf in pairs if isinstance(leaf, Tensor)}


def _limits(graph: Graph) -> dict[str, dict[int, int]]:
    """The largest size that the captured network takes along the axes of its inputs, where there is one."""
    found: dict[str, dict[int, int]] = {}
    for name, value in zip(graph.input_names, _values(graph), strict=True):
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if is_symbolic(size):
                node: Any = size.node  # type: ignore[attr-defined]
                upper = node.shape_env.bound_sympy(node.expr).upper
                if upper.is_Integer:
                    found.setdefault(name, {})[axis] = int(upper)
    return found


def _write_script(
    engine: Path, sidecar: Sidecar, order: Order, missing: EnvironmentMissing
) -> None:
    script = engine.with_suffix(".build.py")
    script.write_text(build_script(engine.name, sidecar, order.engine))
    ways = f"`python {script.name}`"
    if order.engine.backend != "tensorrt-rtx" and not order.engine.gpu_arch:
        ways += f", or `{trtexec(sidecar.onnx, engine.name, sidecar.profile, order.engine)}`"
    order.emit(Noted(f"no engine was built ({missing.what}); where TensorRT is: {ways}"))
    found = f" ({missing.found})" if missing.found else ""
    order.emit(
        Missing(
            f"no engine: {missing.what}{found}; the typed ONNX file and `{script.name}` are written instead; "
            f"{missing.hint}"
        )
    )


def _version() -> str:
    try:
        return version("normfold")
    except PackageNotFoundError:  # a bare clone
        return ""
