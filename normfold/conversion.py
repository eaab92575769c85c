"""convert: from a model file to a verified artefact, the way the command line does it."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from torch import nn

from normfold.api import Progress, Verify, capture_loaded, own_samples, run
from normfold.errors import EnvironmentMissing, UsageError
from normfold.graph import Graph
from normfold.graph.bake import bake
from normfold.judge import Verifier
from normfold.judge.bench import gate
from normfold.load import load
from normfold.ranges import sidecar
from normfold.report import Report
from normfold.report.policy import Requirement
from normfold.report.sites import site_statuses
from normfold.rewrite import Pass, parse
from normfold.rewrite.presets import preset
from normfold.steps.quantize import Integers, Quantization, require_executable, write_integers
from normfold.steps.train import TRAINED, Student, Training, train_student
from normfold.targets.deploy import (
    input_normalisation,
    judge_file,
    lower_precision,
    parse_precision,
    require_engine,
    write_engine,
)
from normfold.targets.staging import publish, require_writable, staging
from normfold.targets.tensorrt import EngineOptions, parse_dynamic
from normfold.train.ranks import process_group

FORMATS = ("onnx", "pt2", "trt")


@dataclass
class Result:
    """What `convert` made: the rewritten graph, the report, and the files that were written."""

    graph: Graph
    report: Report
    artifacts: list[Path]

    @property
    def ok(self) -> bool:
        """True if every verdict passed; otherwise only the report was written."""
        return self.report.ok


def convert(
    model: str | os.PathLike[str] | nn.Module,
    to: str = "folded",
    *,
    passes: str | None = None,
    export: str | Sequence[str] | None = "onnx",
    output: str | os.PathLike[str] = "out",
    inputs: Sequence[Any] = (),
    factory: str | None = None,
    trust_modules: Sequence[str] = (),
    trust_pickle: bool = False,
    batch: Literal["dynamic", "static"] = "dynamic",
    dynamic: Sequence[str] = (),
    verify: Verify = "final",
    seed: int = 0,
    opset: int | None = None,
    dialect: str = "ort-x86",
    keep_if_faster: bool = False,
    require: Sequence[str] = (),
    untie: bool = False,
    precision: Literal["fp32", "fp16", "bf16"] | None = None,
    keep_fp32: Sequence[str] = (),
    half_budget: float | None = None,
    engine: EngineOptions | None = None,
    training: Training | None = None,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> Result:
    """Load, capture, rewrite, verify, export, and verify again what was exported.

    Args:
        model: any MODEL of the command line, or a module.
        to: a preset (``folded``, ``rmsnorm``, ``crmsnorm``, ``baked``), or what LayerNorms are replaced by and the
            network then distilled (``prepbn``, ``repbn``, ``bn``, ``un``, ``affine``; needs ``training``);
            ``passes`` gives a pipeline text instead.
        export: ``onnx``, ``pt2`` and/or ``trt``; None rewrites only.
        output: folder for the artefacts and ``<name>.report.json``; made if missing.
        inputs: example inputs (tensors, which the verdict counts too), or texts such as ``x:1x3x224x224``;
            inferred when empty.
        factory, trust_modules, trust_pickle: how to load, see `normfold.load.load`.
        batch: ``dynamic`` (default) or ``static``.
        dynamic: more axes of the inputs that stay dynamic, as ``input_ids:1``; the sizes that an engine is built
            for may follow, as ``x:0=1..8..64``.
        verify: ``final``, ``each`` or ``off``.
        opset, dialect: of the ONNX file.
        keep_if_faster: time the ONNX file against the original's own export in onnxruntime on the CPU, and
            write the latter under the same name unless the result is faster.
        require: how many sites a pass must have rewritten, as ``center-stream>=1``; judged as the verdict is.
        untie: sets the option of that name in every pass that has it: an embedding table that is also the
            head's weight may be copied.
        precision: of weights and activations in the files: ``fp32``, ``fp16``, ``bf16``, or as captured. Inputs
            and outputs keep their types. Ops that half precision cannot hold by what was measured on the
            verdict's typical inputs stay in float32 (``report.precision``).
        keep_fp32: patterns of module paths, ops or nodes that stay in float32 besides.
        half_budget: relative error ``|y - r| / |r|`` that half precision may cost; 0.02 for fp16, 0.1 for bf16.
        engine: how ``trt`` builds, see `normfold.targets.tensorrt.EngineOptions`.
        training: data and recipe, see `normfold.steps.train.Training`. The verdict compares what is exported with
            the trained student; ``report.training`` says how far that is from the original.
        quantization: how the result becomes integers, see `normfold.steps.quantize.Quantization`. The verdict is
            of the float network; ``report.quantization`` says how far the integers are from it.

    Returns:
        The result. When a verdict fails or a requirement is not met, ``result.ok`` is False, the report is
        written, and artefacts of an earlier run stay as they were.

    Raises:
        LoadError, CaptureError, UsageError, ExportError, PassError, each with what, where, found and a hint;
        EnvironmentMissing when the files are written and the runtime that would judge them is not here.
    """
    start = time.perf_counter()
    trained = passes is None and to in TRAINED
    pipeline = parse(passes if passes is not None else preset("rmsnorm" if trained else to))
    if quantization is not None:
        pipeline = _prepared(pipeline, quantization)
    _require_training(to if trained else None, training)
    if untie:
        pipeline = [_untied(item) for item in pipeline]
    requirements = [Requirement.parse(text, [item.name for item in pipeline]) for text in require]
    formats, name, folder = _formats(export), _name(model), Path(output)
    dtype, (axes, ranges) = parse_precision(precision, keep_fp32), parse_dynamic(dynamic)
    _require_dialect(dialect)
    if quantization is not None:
        require_executable(formats, dialect, quantization)
    require_engine(formats, engine, ranges)
    if keep_if_faster:
        _require_timeable(formats, dialect)
    if formats:
        require_writable(folder)
    say = progress or (lambda line: None)
    say("loading")
    loaded = load(
        model,
        factory=factory,
        inputs=inputs,
        trust_modules=trust_modules,
        trust_pickle=trust_pickle,
        seed=seed,
    )
    say("capturing")
    graph = capture_loaded(loaded, batch, axes)
    source, inputs_from = loaded.source, loaded.inputs_from
    normalisation = input_normalisation(loaded.module)
    if not isinstance(model, nn.Module):
        _remembered(graph, model)
    captured, student = graph, None
    if trained and training is not None:
        with process_group() as rank:
            student = train_student(graph, to, training, normalisation=normalisation, progress=say)
        graph = student.graph
        if rank:  # of torchrun: the first one goes on and writes
            return Result(graph, Report(training=student.report), [])
    verifier = None
    if verify != "off":
        verifier = Verifier(graph, seed, own_samples(graph, inputs))
    else:  # nothing to compare with: the old weights go while the new ones are made
        graph.original = None
        del loaded
        if not isinstance(model, nn.Module):
            gc.collect()  # torch.export leaves cycles that hold them
    copy = keep_if_faster or verifier is not None
    result, report = run(graph, pipeline, verify, verifier=verifier, progress=progress, copy=copy)
    if student is not None:
        _add_training(report, student, result)
    report.model, report.inputs, report.versions = source, inputs_from, versions()
    report.unmet = [text for item in requirements if (text := item.check(report.passes))]
    if formats and not result.baked:
        bake(result)
        result.recompile()
        report.notes.append("the pipeline does not bake: baked before the export")
        if verifier is not None:
            report.checks.append(verifier.rounding(result))
    allowed = None
    if dtype is not None and report.ok:
        result, allowed = lower_precision(
            result, dtype, keep_fp32, inputs, seed, report, verifier, half_budget
        )
    integers = None
    if quantization is not None and report.ok:
        integers = Integers(result, quantization, report, normalisation, say)
        if not formats:
            result = integers.graph(dialect)
    artifacts: list[Path] = []
    missing: EnvironmentMissing | None = None
    if formats and report.ok:
        with staging(folder) as temporary:
            for kind in sorted(formats):  # ONNX first: what else is written is what it holds
                if not report.ok:
                    break
                say(f"writing {kind}")
                if kind == "trt":
                    missing = (
                        write_engine(
                            result,
                            temporary,
                            name,
                            report,
                            verifier,
                            options=engine or EngineOptions(),
                            ranges=ranges,
                            opset=opset,
                            budget=allowed,
                            normalisation=normalisation,
                            integers=integers,
                            progress=say,
                        )
                        or missing
                    )
                    continue
                target = temporary / f"{name}.{kind}"
                if integers is not None:
                    write_integers(target, integers, report, opset, dialect)
                    continue
                lacking = _write(kind, result, target, report, verifier, opset, dialect, allowed)
                missing = missing or lacking
                if kind == "onnx" and keep_if_faster and report.ok and missing is None:
                    judged = gate(captured, target, report, verifier, opset, dialect, progress)
                    result = judged or result
            if report.ok:
                if "pt2" in formats or integers is not None:  # what can be quantised later
                    sidecar.save(result, sidecar.sidecar_of(temporary / f"{name}.onnx"))
                artifacts = publish(temporary, folder)
    report.artifacts = [str(path) for path in artifacts]
    report.seconds, report.peak_memory_mb = time.perf_counter() - start, peak_memory_mb()
    if formats:
        with staging(folder) as temporary:
            (temporary / f"{name}.report.json").write_text(report.to_json() + "\n")
            publish(temporary, folder)
    if missing is not None:
        raise missing
    return Result(result, report, artifacts)


def _require_training(to: str | None, training: Training | None) -> None:
    if to is not None and training is None:
        raise UsageError(
            f"`{to}` changes the function: the network must learn from its original, and there are no samples",
            hint="give `--data` (`training=` in Python): inputs as the network meets them, labels optional",
        )
    if to is None and training is not None:
        raise UsageError(
            "there is nothing to train: this conversion is exact",
            hint=f"`--data` goes with `--to` {', '.join(TRAINED)}",
        )


def _add_training(report: Report, student: Student, result: Graph) -> None:
    """What made the student goes in front of what the pipeline made of it."""
    report.training = student.report
    report.passes = [*student.passes, *report.passes]
    report.pipeline = ",".join([*(item.spec for item in student.passes), report.pipeline])
    report.sites = site_statuses(result, report.passes)


def _remembered(graph: Graph, model: str | os.PathLike[str]) -> None:
    """Take what an earlier run wrote beside a program: its norms are folded, their statistics are not lost."""
    path = sidecar.sidecar_of(model)
    if str(model).endswith(".pt2") and path.is_file():
        count = sidecar.restore(graph, path)
        graph.notes.append(f"statistics of {count} tensors from `{path.name}`")


def _prepared(pipeline: list[Pass], quantization: Quantization) -> list[Pass]:
    """The pipeline with the exact passes that quantising asks for, in front of what puts norms back together."""
    extra = parse(",".join(quantization.exact_passes)) if quantization.exact_passes else []
    at = next((n for n, item in enumerate(pipeline) if item.name in ("restore", "bake")), None)
    return [*pipeline[:at], *extra, *(pipeline[at:] if at is not None else [])]


def _untied(item: Any) -> Any:
    """The pass with its option ``untie`` set, if it has one."""
    has_option = any(field.name == "untie" for field in fields(item))
    return replace(item, untie=True) if has_option else item


def _write(
    kind: str,
    graph: Graph,
    path: Path,
    report: Report,
    verifier: Verifier | None,
    opset: int | None,
    dialect: str,
    budget: float | None,
) -> EnvironmentMissing | None:
    """Write one format and judge it; returns what the machine lacks if the file cannot be run here."""
    if kind == "pt2":
        from normfold.targets.pt2 import export_pt2

        export_pt2(graph, path)
        return None
    from normfold.targets.onnx import export_onnx

    exported = export_onnx(
        graph,
        path,
        opset=opset,
        dialect=dialect,
        metadata={"pipeline": report.pipeline, "source": report.model},
    )
    report.notes += exported.notes
    report.census = dict(exported.census.ops)
    return None if verifier is None else judge_file(path, report, verifier, budget)


def _formats(export: str | Sequence[str] | None) -> list[str]:
    formats = [export] if isinstance(export, str) else list(export or ())
    for kind in formats:
        if kind not in FORMATS:
            raise UsageError(
                f"cannot export `{kind}`",
                hint=f"`--export` takes {' or '.join(f'`{name}`' for name in FORMATS)}",
            )
    return formats


def _require_dialect(name: str) -> None:
    from normfold.targets.dialects import dialect

    dialect(name)


def _require_timeable(formats: Sequence[str], dialect: str) -> None:
    if "onnx" not in formats or not dialect.startswith("ort"):
        raise UsageError(
            "`keep-if-faster` times ONNX files in onnxruntime",
            found=f"export {', '.join(formats) or 'nothing'} for {dialect}",
            hint="export `onnx` for `ort-x86` or `ort-arm`; other runtimes time their engines themselves",
        )


def _name(model: Any) -> str:
    if isinstance(model, nn.Module):
        return type(model).__name__.lower()
    text = str(model).split("(")[0].rstrip("/")
    tail = text.rsplit(":", 1)[-1] if not Path(text).exists() else Path(text).name
    for suffix in (".pt", ".pth", ".pt2", ".safetensors", ".bin"):
        tail = tail.removesuffix(suffix)
    return (
        "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in tail)
        or "model"
    )


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Versions of what the result depends on, for the report."""
    found = {"python": sys.version.split()[0]}
    for package in ("normfold", "torch", "onnx", "onnxscript", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
