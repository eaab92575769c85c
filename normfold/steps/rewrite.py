"""Run passes, judged as they go: what the facade's `run` and the step of a job both do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Literal

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.job import Rewrite
from normfold.judge import Verifier
from normfold.judge.rules import Rules, budgets
from normfold.judge.verifier import APPROXIMATIONS
from normfold.progress import Listener, Progress, silent
from normfold.ranges.calibration import given_inputs, samples_of
from normfold.report import Check, PassReport
from normfold.report.events import Noted, Recorder, Rewritten
from normfold.report.policy import Requirement
from normfold.report.sites import site_statuses
from normfold.report.snapshot import Snapshot, around
from normfold.rewrite import Effect, Pass, parse, run_pipeline
from normfold.rewrite.baker import needs_baking
from normfold.rewrite.pipeline import require_passes
from normfold.steps.work import Work

Verify = Literal["final", "each", "strict", "off"]


def passes_of(pipeline: str | Sequence[Pass], untie: bool = False) -> list[Pass]:
    """The passes of a pipeline text, or those given; with ``untie`` in every pass that has the option.

    Raises:
        UsageError: the text is wrong.
    """
    passes = parse(pipeline) if isinstance(pipeline, str) else require_passes(pipeline)
    return [_untied(item) for item in passes] if untie else passes


def _untied(item: Any) -> Any:
    has_option = any(field.name == "untie" for field in fields(item))
    return replace(item, untie=True) if has_option else item


def run_judged(
    graph: Graph,
    passes: Sequence[Pass],
    verify: Verify,
    record: Recorder,
    *,
    verifier: Verifier | None,
    say: Listener = silent,
    copy: bool = True,
    capture: bool = True,
    max_error: float | None = None,
    files: bool = False,
    spent: float | None = None,
) -> Graph:
    """Run passes on ``graph`` (a copy unless ``copy`` is off), judge and record.

    ``each`` judges after every pass, ``final`` the algebra before baking and the result at the end, ``strict``
    likewise, but the algebra at the full sizes of the capture and on every case. ``capture`` also judges the
    captured graph against the module. From an approximate pass on that rewrote something, a result
    is judged by its budget, or by ``max_error``; what is in front of it stays exact. Where ``files`` of the result
    are judged next, what is certified is run in its own types on the smallest case only. ``spent`` is what passes
    that ran before these may have cost.

    Raises:
        UsageError: as `normfold.judge.rules.budgets`.
    """
    rules = None
    if verifier is not None:
        spends = budgets(passes, max_error)
        rules = Rules(verifier, spends, max_error, small=verify != "strict", files=files)
        rules.spent += [] if spent is None else [spent]
    bakes = [index for index, item in enumerate(passes) if Effect.BAKES in item.effects]
    judged = {(bakes[0] if bakes else len(passes)) - 1, len(passes) - 1}
    if verifier is not None and verify != "off" and capture:
        say(Progress("checking the capture"))
        record.emit(verifier.capture())
    done = 0

    def after(item: Pass, current: Graph, report: PassReport) -> None:
        nonlocal done
        index, done = done, done + 1
        text = f"{report.rewrites} rewrites, {len(report.declined)} declined"
        say(Progress(str(item), done, len(passes), text))
        if rules is None:
            return
        rules.ran(index, report)
        if verify == "each" or (verify != "off" and index in judged):
            found = rules.judge(current)
            report.check, report.certificate = found.check, found.certificate

    before = Snapshot.of(graph)
    result, reports = run_pipeline(graph, passes, after, copy)
    sites = site_statuses(result, [*record.report().passes, *reports])
    near = tuple(around(before, result, sites))
    record.emit(Rewritten(tuple(reports), tuple(sites), result.parameter_bytes(), near))
    for text in [*result.notes, *_nothing_done(reports)]:
        record.emit(Noted(text))
    return result


def _nothing_done(reports: Sequence[PassReport]) -> list[str]:
    """A note for every pass that met sites and could rewrite none."""
    notes = []
    for item in reports:
        if item.declined and not item.applied:
            codes = Counter(declined.code for declined in item.declined)
            why = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
            notes.append(f"{item.name} changed nothing: it declined {why}")
    return notes


def rewrite(step: Rewrite, graph: Graph, work: Work) -> Graph:
    """The step of a job: run its pipeline, and bake where files are written and the pipeline does not."""
    passes = passes_of(step.pipeline, step.untie)
    policy = work.job.policy
    keep = work.verifier is not None or policy.keep_if_faster or not work.disposable
    keep = keep or "module" in work.job.export.export
    with _samples(passes, graph, work):
        result = run_judged(
            graph,
            passes,
            policy.verify,
            work.record,
            verifier=work.verifier,
            say=work.say,
            copy=keep,
            max_error=policy.max_error,
            files=_are_judged(step, work),
        )
    result.samples = graph.samples  # the user's stay with the job
    made = [item.check for item in work.record.report().passes if item.check is not None]
    if made and made[-1].kind in APPROXIMATIONS:  # files too are judged by what the passes may cost
        work.half_budget = made[-1].outputs[0].tolerance
    if work.job.export.export and needs_baking(result):
        for item in passes_of("bake"):
            item.run(result)
        work.record.emit(Noted("the pipeline does not bake: baked before the export"))
        if work.verifier is not None:
            work.record.emit(_baked(work.verifier, result, work.half_budget))
    return result


@contextmanager
def _samples(passes: Sequence[Pass], graph: Graph, work: Work) -> Iterator[None]:
    """The user's samples in the graph while passes run that measure on them.

    Raises:
        UsageError: samples are given, and nothing in the job measures or learns.
    """
    source, job, before = work.job.source, work.job, graph.samples
    used = any((job.train, job.quantize, job.recalibrate))
    if source.data is not None and any(item.measures for item in passes):
        work.tell("reading samples")
        graph.samples = samples_of(graph, given_inputs(graph, source, work.normalisation))
    elif source.data is not None and source.has_inputs and not used:
        raise UsageError(
            "`--data`: none of the passes measures on samples",
            found=", ".join(item.name for item in passes),
            hint="leave it out; `fold-near-affine` and `correct-bias` do, for example",
        )
    try:
        yield
    finally:
        graph.samples = before


def _baked(verifier: Verifier, result: Graph, budget: float | None) -> Check:
    return verifier.rounding(result) if budget is None else verifier.within(result, budget)


def _are_judged(step: Rewrite, work: Work) -> bool:
    """True if a file is written in the types of the result, and is run and compared here."""
    files = [item for item in work.job.export.requests if item.format == "onnx"]
    return step is work.job.steps[-1] and any(item.target.times_here for item in files)


def requirements(texts: Sequence[str], passes: Sequence[Pass]) -> list[Requirement]:
    """Requirements of a policy on the passes of a job.

    Raises:
        UsageError: a text that is not one, or about a pass that does not run.
    """
    return [Requirement.parse(text, [item.name for item in passes]) for text in texts]


def require_mode(mode: str) -> None:
    """Refuse a wrong ``verify``."""
    if mode not in ("final", "each", "strict", "off"):
        raise UsageError("`verify` is `final`, `each`, `strict` or `off`", found=f"`{mode}`")
