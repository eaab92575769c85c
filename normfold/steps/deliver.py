"""Write every file that a job asks for, and judge each of them before it is published."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file

from normfold.errors import EnvironmentMissing, ExportError, NormfoldError
from normfold.files import publish, staging
from normfold.ir import Graph
from normfold.job import Job, Request
from normfold.judge import Verifier
from normfold.judge.agreement import Promise
from normfold.judge.bench import time_against_original
from normfold.judge.files import Judge, artefact
from normfold.judge.layers import compare_layers
from normfold.ranges import sidecar
from normfold.report.events import Counted, KeptOriginal, Missing, Noted
from normfold.report.objects import Report
from normfold.report.quantization import Placement
from normfold.report.timing import Timing, duration
from normfold.report.verdict import Budget, Verdict
from normfold.steps import placement
from normfold.steps.earlier import remove_stale
from normfold.steps.names import named, of_files
from normfold.steps.pipelines import with_rounding
from normfold.steps.prepare import Prepared, require
from normfold.steps.quantize import Made, in_floats, to_grids
from normfold.steps.work import Work
from normfold.target import Target
from normfold.targets.floats import widened
from normfold.targets.order import Draft, Order, Run, drafts, runs_of
from normfold.targets.tensorrt.write import builder, wanted

_ROUNDED_DB = 20.0  # of inputs in 8 bits by blocks, through many layers
_COARSE_DB = 3.0  # of weights of few bits: noise of half the size of the signal


def deliver(graph: Graph, work: Work, prepared: Prepared) -> tuple[Graph, list[Path]]:
    """Write and judge the files of a job out of sight, and publish them if every verdict passes.

    Returns:
        The graph of the first file, on the grids of its target if the job quantises; and the published files.
    """
    export = work.job.export
    if not export.export:
        if work.calibrated is not None:
            graph, _ = to_grids(export.first.name, work)
        return graph, []
    with staging(export.output) as folder:
        graph = _write_all(graph, work, prepared, folder)
        if work.record.ok:
            require(prepared, work.record, of_files=True)
        if not work.record.ok:
            return graph, []
        remove_stale(export.output, prepared.name, work.record.report().artefacts)
        return graph, publish(folder, export.output)


def _write_all(graph: Graph, work: Work, prepared: Prepared, folder: Path) -> Graph:
    """The files of a job in a folder; stops at the first that fails. Returns the graph of the first one."""
    requests, made = work.job.export.requests, list[Graph]()
    for request in requests:
        if not work.record.ok:
            break
        stem = prepared.name
        if request.format == "onnx" and any(
            item.format == "onnx" for item in requests[: requests.index(request)]
        ):
            stem += f".{request.target.name}"
        try:
            source = graph if work.kept is None else work.kept
            made.append(_write(request, source, work, prepared, folder / stem))
        except EnvironmentMissing as error:  # what else was asked for is written all the same
            hint = f"; {error.hint}" if error.hint else ""
            work.record.emit(Missing(f"no {request.format}: {error.what}{hint}"))
    if "pt2" in work.job.export.export or work.calibrated is not None:
        sidecar.save(graph, sidecar.sidecar_of(folder / f"{prepared.name}.onnx"))
    if work.source_statistics:
        tensors = {name: x.contiguous() for name, x in work.source_statistics.items()}
        save_file(tensors, folder / f"{prepared.name}.source-statistics.safetensors")
    return made[0] if made else graph


def _original(job: Job) -> str:
    """What files are compared with, where it is not the network that was loaded."""
    if job.train is not None:
        return "the trained student"
    return "the recalibrated network" if job.recalibrate is not None else ""


def _write(request: Request, graph: Graph, work: Work, prepared: Prepared, stem: Path) -> Graph:
    job, target = work.job, _target(request, prepared)
    promise = None
    if work.calibrated is not None:
        placed, made = _placement(request, graph, work, prepared)
        if placed is not None and placed.whole:  # nothing is rounded: it is judged as exact
            in_floats(placed, work)
        else:
            graph, promise = to_grids(target.name, work, placed, made)
    graph = _in_its_floats(graph, target, work)
    report = work.record.report()
    renamed = named(graph, job.export)
    order = Order(
        renamed,
        stem,
        target,
        opset=job.export.opset,
        engine=prepared.engine,
        ranges=of_files(prepared.ranges, graph, renamed),
        metadata={"pipeline": report.pipeline, "source": report.model, **_task(job)},
        precision=report.lowered or "as captured",
        normalisation=work.normalisation,
        emit=work.record.emit,
        say=work.say,
        captured=work.captured,
        source=_source(job.source.model),
        folder=job.export.output,
    )
    judge = Judge(
        work.verifier,
        work.half_budget,
        promise,
        budget=_budget(promise, job.policy.max_drop),
        rounded=_rounded(job, request),
        plain=lambda: _own_export(order, request, work),
        strict=job.policy.verify == "strict",
        original="" if work.kept is not None else _original(job),
    )
    work.tell(f"writing {request.format}", target.name)
    for draft in drafts(request.format, order):
        work.tell(f"judging {draft.path.name}")
        verdict = judge.judge(draft, work.record.emit)
        _publish(draft, request, target, verdict, work)
        if work.record.report().quantization and request.format == "onnx":
            _count(draft, target, work)
        if verdict.state == "fail":
            exact = work.half_budget is None and promise is None and not graph.entries
            if request.format == "onnx" and work.verifier is not None and exact:
                _compare_layers(draft, work)
            return graph
        if request.format == "onnx" and target.times_here:
            if job.policy.keep_if_faster:
                graph = _faster(draft, request, graph, work)
            elif prepared.times and work.record.report().speed is None:
                _time(draft, request, work)
                shutil.rmtree(draft.path.parent / "original")
    return graph


def _placement(
    request: Request, graph: Graph, work: Work, prepared: Prepared
) -> tuple[Placement | None, Made | None]:
    """What stays in floats, where the job does not ask for all that is possible in integers."""
    job, step = work.job, work.job.quantize
    assert step is not None
    if (
        job.policy.keep_if_faster is False
        or request.format != "onnx"
        or not placement.applies(step)
    ):
        return None, None
    earlier = sidecar.sidecar_of(job.export.output / f"{prepared.name}.onnx")
    return placement.place(graph, with_rounding(step, work), request.target, work, earlier)


def _budget(promise: Promise | None, max_drop: float | None) -> Budget:
    """What integers may lose; of weights of few bits the file is judged by its simulation, and what they lose is
    said."""
    if promise is not None and promise.coarse:
        return Budget(agreement=None, snr_db=_COARSE_DB, max_drop=max_drop)
    return Budget(max_drop=max_drop)


def _rounded(job: Job, request: Request) -> Budget | None:
    """Of a file for whose products onnxruntime, as it is used, rounds the inputs by itself."""
    step = job.quantize
    if step is None or step.scheme != "int8-weights" or request.format != "onnx":
        return None
    return Budget(clear_db=_ROUNDED_DB, max_drop=job.policy.max_drop)


def _compare_layers(draft: Draft, work: Work) -> None:
    """Say which layer of a refused file is the first that is wrong, where its layers can be told."""
    assert work.verifier is not None
    work.tell(f"comparing the layers of {draft.path.name}")
    try:
        work.record.emit(compare_layers(work.verifier.graph, draft.path))
    except NormfoldError as error:  # the verdict stands without them
        work.record.emit(Noted(f"the layers of {draft.name} were not compared: {error.what}"))


def _own_export(order: Order, request: Request, work: Work) -> dict[str, Run]:
    """How the own export of what files are compared with is run, by the kind of the check: of the original, or of
    the trained student; nothing where it has none."""
    if request.format not in ("onnx", "openvino"):  # an engine would take minutes
        return {}
    assert work.verifier is not None
    graph = named(widened(work.verifier.graph, order.target)[0], work.job.export)
    with TemporaryDirectory(dir=order.stem.parent) as folder:
        own = replace(order, graph=graph, stem=Path(folder) / "original", emit=lambda event: None)
        try:
            return dict(next(drafts(request.format, own)).runs())
        except (ExportError, EnvironmentMissing):  # then nothing excuses the file
            return {}


def _in_its_floats(graph: Graph, target: Target, work: Work) -> Graph:
    """In types that the target has kernels for, unless the user chose the type."""
    if work.record.report().lowered:
        return graph
    graph, note = widened(graph, target)
    if note:
        work.record.emit(Noted(note))
    return graph


def _source(model: Any) -> Path | None:
    """The file or folder that a model is from."""
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    return path if path is not None and path.exists() else None


def _task(job: Job) -> dict[str, str]:
    """The entry of the metadata that says what the file is for."""
    return {} if job.source.task is None else {"task": job.source.task}


def _target(request: Request, prepared: Prepared) -> Target:
    """The row that a request is written for: that of the builder, where one builds."""
    if request.format != "trt":
        return request.target
    return wanted(prepared.engine, builder(prepared.engine)[0])


def _publish(draft: Draft, request: Request, target: Target, verdict: Verdict, work: Work) -> None:
    """Record a file with its verdict."""
    job = work.job
    made = artefact(draft, request.format, target.name, job.export.output, verdict)
    work.record.emit(made)
    unjudged = verdict.state == "not judged" and job.policy.verify != "off"
    if unjudged and job.policy.require_judged:
        work.record.emit(Missing("--require-judged is not met"))


def _count(draft: Draft, target: Target, work: Work) -> None:
    """Which ops onnxruntime runs in integers, where it is the target and here."""
    if not target.times_here:
        return
    from normfold.targets.integer_census import integer_census

    found = integer_census(draft.path)
    work.record.emit(Counted(found.integer, found.floats, found.ops, found.blocked))


def _time(draft: Draft, request: Request, work: Work) -> tuple[Timing, Graph, Report]:
    """Time the file against the original's own export, which lies beside it in `original` then."""
    timing, bare, plain = time_against_original(
        work.captured,
        draft.path,
        work.record.report().pipeline,
        opset=work.job.export.opset,
        target=request.target.name,
        say=work.say,
    )
    work.record.emit(timing)
    return timing, bare, plain


def _faster(draft: Draft, request: Request, graph: Graph, work: Work) -> Graph:
    """Keep the file if it is faster than the original's own export, else put that in its place."""
    timing, bare, plain = _time(draft, request, work)
    folder = draft.path.parent / "original"
    if timing.faster:
        shutil.rmtree(folder)
        return graph
    for file in (draft.path, *draft.files):
        file.unlink()
    files = []
    for file in sorted(folder.iterdir()):
        os.replace(file, draft.path.with_name(file.name))
        files.append(draft.path.with_name(file.name))
    folder.rmdir()
    pipeline = work.record.report().pipeline
    slow, fast = duration(timing.b_seconds), duration(timing.a_seconds)
    work.record.emit(
        KeptOriginal(
            plain,
            f"not faster, so the original's own export was written: `{pipeline}` takes {slow}, the "
            f"original {fast}",
        )
    )
    # from here on it is the original that is written, and judged by
    work.kept, work.calibrated, work.half_budget = bare, None, None
    if work.verifier is not None:
        captured = widened(work.captured, request.target)[0]
        work.verifier = Verifier(
            captured, work.job.source.seed, work.samples, work.job.policy.tries
        )
        work.record.emit(work.verifier.rounding(bare))
    kept = replace(
        draft,
        files=tuple(file for file in files if file != draft.path),
        runs=lambda: runs_of(request.target, draft.path),
    )
    verdict = Judge(work.verifier).judge(kept, work.record.emit)
    verdict = replace(verdict, why=f"the original's own export, {verdict.why}")
    _publish(kept, request, request.target, verdict, work)
    return bare
