"""From a rewritten graph to files that a runtime takes: half precision, and TensorRT engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.api import Progress, own_samples, runtime_checks
from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.graph import Graph
from normfold.graph.graph import is_symbolic
from normfold.judge import Verifier
from normfold.judge.inputs import TYPICAL, cases
from normfold.report import EngineReport, Precision, Report
from normfold.steps.quantize import Integers
from normfold.targets.dialects import DIALECTS
from normfold.targets.tensorrt import Backend, Gpu, build, find, gpu, probe
from normfold.targets.tensorrt import EngineOptions as EngineOptions
from normfold.targets.tensorrt.builder import Binding
from normfold.targets.tensorrt.engine import Engine, compare
from normfold.targets.tensorrt.profiles import Ranges, profile
from normfold.targets.tensorrt.script import build_script, trtexec
from normfold.targets.tensorrt.sidecar import Sidecar, sha256

# |y - r| / |r| that a network in half precision may be off by: five to ten times what sound networks show
BUDGETS = {"float16": 0.02, "bfloat16": 0.1}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_precision(text: str | None, keep: Sequence[str]) -> torch.dtype | None:
    """The type that was asked for, or None for what was captured.

    Raises:
        UsageError: no such precision, or patterns to keep in float32 and nothing to keep them from.
    """
    if text is not None and text not in _DTYPES:
        raise UsageError(f"there is no precision `{text}`", hint=", ".join(_DTYPES))
    if keep and text not in ("fp16", "bf16"):
        raise UsageError("`keep-fp32` goes with `precision` fp16 or bf16")
    return _DTYPES[text] if text is not None else None


def lower_precision(
    graph: Graph,
    dtype: torch.dtype,
    keep: Sequence[str],
    inputs: Sequence[Any],
    seed: int,
    report: Report,
    verifier: Verifier | None,
    budget: float | None,
) -> tuple[Graph, float | None]:
    """The graph in another precision, judged; and the budget that files of it are judged by.

    Where the graph holds nothing of another type, and needs nothing else, it is given back as it is, with no
    budget.
    """
    from normfold.targets.typed import lower

    same = all(_float_types(node) <= {dtype} for node in graph.nodes)
    if same and dtype is torch.float32:
        return graph, None
    samples = own_samples(graph, inputs)
    tried = [case.leaves for case in cases(graph, seed, samples, TYPICAL)]
    typed = lower(graph, dtype, tried, keep)
    if same and not typed.islands:
        return graph, None
    name = str(dtype).removeprefix("torch.")
    allowed = BUDGETS.get(name, BUDGETS["float16"]) if budget is None else budget
    report.precision = Precision(name, typed.islands)
    report.parameters_after = typed.graph.parameter_bytes()
    if verifier is not None:
        report.checks.append(verifier.half(name, typed.graph, allowed))
    return typed.graph, allowed


def _float_types(node: Any) -> set[torch.dtype]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}


def judge_file(
    path: Path, report: Report, verifier: Verifier, budget: float | None
) -> EnvironmentMissing | None:
    """Run an ONNX file in onnxruntime; returns what the machine lacks if it cannot."""
    try:
        report.checks += runtime_checks(verifier, path, budget)
    except EnvironmentMissing as error:
        report.notes.append(f"the ONNX file was not run: {error.what}")
        if budget is not None:
            return None  # the network was judged in the arithmetic of its types
        missing = EnvironmentMissing(
            "the files are written, but this machine cannot run them to compare",
            found=error.what,
            hint="run `normfold verify` where the runtime is, or ask for `--verify off` here",
        )
        missing.__cause__ = error
        return missing
    return None


def write_engine(
    graph: Graph,
    folder: Path,
    name: str,
    report: Report,
    verifier: Verifier | None,
    *,
    options: EngineOptions,
    ranges: Ranges,
    opset: int | None,
    budget: float | None,
    normalisation: dict[str, Any] | None,
    integers: Integers | None = None,
    progress: Progress,
) -> EnvironmentMissing | None:
    """Write the strongly typed ONNX file, the engine and its sidecar into ``folder``.

    Without a builder, a script that builds the engine elsewhere takes the engine's place, and what is missing
    is returned.

    Raises:
        UsageError, ExportError: as the parts; nothing is left half-written, since ``folder`` is a staging one.
    """
    from normfold.targets.onnx import export_onnx

    backend, missing = _builder(options)
    onnx, engine = folder / f"{name}.trt.onnx", folder / f"{name}.engine"
    dialect = backend.dialect if backend is not None else DIALECTS[_fallback(options)]
    if integers is not None:
        graph = integers.graph(dialect.name)
    exported = export_onnx(
        graph,
        onnx,
        opset=opset,
        dialect=dialect,
        metadata={"pipeline": report.pipeline, "source": report.model},
    )
    report.notes += [note for note in exported.notes if note not in report.notes]
    report.census = report.census or dict(exported.census.ops)
    dynamic = exported.census.dynamic
    asked = _asked(graph, dynamic, exported.input_names, exported.output_names)
    symbols = {
        item.name: [dynamic.get(item.name, {}).get(at, size) for at, size in enumerate(item.shape)]
        for item in asked
        if item.kind == "input"
    }
    shapes, notes = profile(symbols, _examples(graph), ranges, _limits(graph))
    report.notes += notes
    if verifier is not None and integers is None:
        judge_file(onnx, report, verifier, budget)
        if not report.ok:
            return None
    sidecar = Sidecar(
        flags=options.flags(),
        onnx=onnx.name,
        onnx_sha256=sha256(onnx),
        precision=report.precision.dtype if report.precision is not None else "as captured",
        bindings=tuple(asdict(binding) for binding in asked),
        profile=dict(shapes),
        input_normalisation=normalisation,
        normfold=_version(),
    )
    if backend is None:
        assert missing is not None
        return _write_script(engine, sidecar, options, missing, report)
    progress("building the engine")
    built = build(onnx, backend, options, shapes, origins=exported.origins, progress=progress)
    _require_same(asked, built.bindings, engine)
    engine.write_bytes(built.plan)
    device = gpu()
    sidecar = replace(
        sidecar,
        builder=backend.name,
        version=backend.version,
        gpu=device.name if device is not None and backend.name == "tensorrt" else None,
        targets=backend.targets(options),
        sha256=built.sha256,
        layers=built.layers,
    )
    Sidecar.path_of(engine).write_text(sidecar.to_json())
    report.engine = EngineReport(
        name=engine.name,
        builder=sidecar.builder,
        version=sidecar.version,
        targets=sidecar.targets,
        profile=dict(sidecar.profile),
        layers=sidecar.layers,
        size=len(built.plan),
        seconds=built.seconds,
    )
    report.notes += [f"builder: {text}" for text in built.warnings]
    _run(engine, sidecar, asked, report, verifier, budget)
    return None


def require_engine(formats: Sequence[str], options: EngineOptions | None, ranges: Ranges) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        UsageError: options of engines without an engine, or ones that the builder of this machine has not.
    """
    if "trt" in formats:
        _builder(options or EngineOptions())
    elif (options or EngineOptions()) != EngineOptions():
        raise UsageError(
            "options of an engine, and no engine is built",
            found=f"export {', '.join(formats) or 'nothing'}",
            hint="`--export trt` builds one",
        )
    elif ranges:
        raise UsageError(
            "sizes of dynamic axes are what an engine is built for, and none is built",
            found=", ".join(
                f"`{n}:{axis}={r}`" for n, asked in ranges.items() for axis, r in asked.items()
            ),
            hint="name the axis only (`--dynamic NAME:AXIS`), or build an engine with `--export trt`",
        )


def _builder(options: EngineOptions) -> tuple[Backend | None, EnvironmentMissing | None]:
    """The builder, or what is missing."""
    try:
        backend = find(options.backend)
    except EnvironmentMissing as error:
        return None, error
    backend.check(options)
    return backend, None


def _fallback(options: EngineOptions) -> str:
    """The dialect for a builder that is not here."""
    return "trt-rtx" if options.backend == "tensorrt-rtx" or options.gpu_arch else "trt"


def _require_same(asked: list[Binding], found: Sequence[Binding], engine: Path) -> None:
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
    engine: Path,
    sidecar: Sidecar,
    options: EngineOptions,
    missing: EnvironmentMissing,
    report: Report,
) -> EnvironmentMissing:
    script = engine.with_suffix(".build.py")
    script.write_text(build_script(engine.name, sidecar, options))
    ways = f"`python {script.name}`"
    if options.backend != "tensorrt-rtx" and not options.gpu_arch:
        ways += f", or `{trtexec(sidecar.onnx, engine.name, sidecar.profile, options)}`"
    report.notes.append(f"no engine was built ({missing.what}); where TensorRT is: {ways}")
    return EnvironmentMissing(
        f"{missing.what}: the typed ONNX file and a build script are written instead of an engine",
        found=missing.found,
        hint=f"{missing.hint}; elsewhere {ways}",
    )


def _version() -> str:
    try:
        return version("normfold")
    except PackageNotFoundError:  # a bare clone
        return ""


def input_normalisation(module: Any) -> dict[str, Any] | None:
    """What a timm model says that its inputs, from 0 to 1, are normalised by."""
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, dict) or not {"mean", "std"} <= set(config):
        return None
    return {"mean": list(config["mean"]), "std": list(config["std"])}


def _run(
    engine: Path,
    sidecar: Sidecar,
    asked: list[Binding],
    report: Report,
    verifier: Verifier | None,
    budget: float | None,
) -> None:
    """Open the engine again, compare, and run it, where there is a GPU that it is for."""
    device = probe()
    if not isinstance(device, Gpu):
        why = device
    elif not sidecar.fits(device.arch):
        why = f"it is not for {device.name}, {device.arch}"
    else:
        why = ""
    if why:
        report.notes.append(
            f"the engine was built, not run ({why}): inputs, outputs and types were compared on the typed network"
        )
        return
    opened = Engine(engine)
    _require_same(asked, opened.bindings, engine)
    assert report.engine is not None
    report.engine = replace(report.engine, opened=True, layers=opened.layers())
    if verifier is None:
        return
    try:
        check = verifier.outputs("tensorrt", opened.run, budget)
    except (EnvironmentMissing, UsageError) as error:  # no CUDA in torch; sizes beyond the profile
        why = f"{error.what}: {error.found}" if error.found else error.what
        report.notes.append(f"the engine was built and opened, not run ({why})")
        return
    report.checks.append(check)
    report.engine = replace(report.engine, ran=True)
