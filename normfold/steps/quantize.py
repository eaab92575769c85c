"""From a float network to few bits: find value ranges, put weights and activations on grids, say what it cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from normfold.domains.placed import device_of
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import fetch
from normfold.ir.graph import op_name
from normfold.job import Quantize, Source
from normfold.judge.agreement import Promise, gives_scores
from normfold.load.specs import parse as parse_inputs
from normfold.ops.integer_ops import on_grid
from normfold.ops.integer_ops import quantize as quantize_op
from normfold.ops.linear import linear_of
from normfold.ops.table import row_of
from normfold.ranges.calibration import Calibrated, Inputs, find_inputs, find_ranges, samples_of
from normfold.ranges.saturation import integer_ranges
from normfold.report import PassReport
from normfold.report.events import Noted, Rewritten
from normfold.report.quantization import (
    Confidence,
    Evidence,
    MixedReport,
    Placement,
    QuantizationReport,
)
from normfold.report.reasons import Reason
from normfold.rewrite import Effect, Exactness, Pass, parse, run_pipeline
from normfold.steps.cast import cast_beside_grids
from normfold.steps.effort import best_way
from normfold.steps.formats import choose
from normfold.steps.pipelines import About, pipeline, with_floats, with_rounding
from normfold.steps.rewrite import passes_of, run_judged
from normfold.steps.work import Work
from normfold.target import TARGETS

Made = tuple[Graph, list[PassReport]]  # a network on grids, and the passes that made it
_FINE = 7  # bits of weights that change few answers
_HEAVY = 0.2  # share of the weights in floats from which it is said
_MIGRATE = "migrate-scale,restore,bake"
_COLUMNS = (
    "migrate-scale{alpha=0},restore,bake"  # inputs that share a scale get weights of one size
)


def quantize(step: Quantize, graph: Graph, work: Work) -> Graph:
    """The step of a job: the float graph with the range of every tensor; `to_grids` makes integers of it, for each
    target its own. Scales that migrate do so here, since what moves is what was measured."""
    if step.exact:
        return _kept(step, graph, work)
    device_of(step.device)
    source, policy, start = work.job.source, work.job.policy, time.perf_counter()
    if policy.max_drop is not None and policy.metric is None and not gives_scores(graph):
        raise UsageError(
            "there is nothing to judge `--max-drop` by: the first output is not scores of classes",
            hint="give `--metric pkg.mod:fn` and `--data`, or leave `--max-drop` out: outputs are then judged by "
            "their signal-to-noise ratio",
        )
    step = _within_stated(step, source)
    given: dict[str, Any] = {"normalisation": work.normalisation, "say": work.say}
    work.tell("finding inputs to measure on")
    inputs = find_inputs(graph, step, source, **given)
    graph = graph.copy()
    graph.samples = samples_of(graph, inputs)
    in_blocks = step.weights is None and step.scheme in ("int8-weights", "int4-weights")
    if step.migrate or in_blocks:
        graph = _exactly(graph, passes_of(_MIGRATE if step.migrate else _COLUMNS), work)
    given |= {"data": source.data is not None, "seed": source.seed}
    if step.effort > 1 and step.scheme in ("int8", None):
        graph = _with_effort(graph, inputs, step, work, given)
    found = find_ranges(graph, inputs, step, **given)
    work.calibrated = replace(found, seconds=time.perf_counter() - start)
    return graph


def _exactly(graph: Graph, passes: list[Pass], work: Work) -> Graph:
    """The graph after exact passes, judged as the job wants it; the capture has been judged before."""
    return run_judged(
        graph,
        passes,
        work.job.policy.verify,
        work.record,
        verifier=work.verifier,
        say=work.say,
        capture=False,
        spent=work.half_budget,
    )


def _with_effort(
    graph: Graph, inputs: Inputs, step: Quantize, work: Work, given: dict[str, Any]
) -> Graph:
    """The graph in the way that errs least on held-out inputs; its rounding is kept for `to_grids`."""
    target = work.job.export.first.name
    way, work.tried = best_way(
        graph,
        inputs,
        step,
        lambda tried: pipeline(tried, target, About.of(graph)),
        **given,
    )
    work.rounding = way.weights
    if not way.passes:
        return graph
    return _exactly(graph, passes_of(way.passes), work)


def _kept(step: Quantize, graph: Graph, work: Work) -> Graph:
    """The network with those weights in integers that are on a grid already: nothing is rounded, and its files are
    judged as exact."""
    start, known = time.perf_counter(), len(work.record.report().passes)
    result = _exactly(graph, kept_by(step), work)
    weights = sum(item.rewrites for item in work.record.report().passes[known:])
    seconds = time.perf_counter() - start
    target = work.job.export.first.name
    work.record.emit(QuantizationReport("lossless", target, weights=weights, seconds=seconds))
    return result


def kept_by(step: Quantize) -> list[Pass]:
    """The passes that store weights as they are.

    Raises:
        UsageError: one of them rounds.
    """
    passes = passes_of(f"{step.weights or 'keep-grids'},bake")
    rounds = next((item for item in passes if item.exactness is not Exactness.EXACT), None)
    if rounds is not None:
        raise UsageError(
            f"`{rounds.name}` rounds, and `--quantize {step.scheme}` rounds nothing",
            hint="`--weights 'keep-grids{least=4}'`, or another scheme",
        )
    return passes


def _within_stated(step: Quantize, source: Source) -> Quantize:
    """The step with the range of valid pixels that `--input` states behind the shape of an image, or of the only
    input."""
    specs = parse_inputs([text for text in source.inputs if isinstance(text, str)])
    stated = {
        spec.range
        for spec in specs
        if spec.range is not None
        and spec.range[0] < spec.range[1]
        and (len(spec.shape) == 4 or len(specs) == 1)
    }
    if step.pixels is not None or len(stated) != 1:
        return step
    return replace(step, pixels=stated.pop())


def to_grids(
    target: str, work: Work, placement: Placement | None = None, made: Made | None = None
) -> tuple[Graph, Promise]:
    """The network of few bits for a target, recorded with what made it, and what its file must keep."""
    step, calibrated = work.job.quantize, work.calibrated
    assert step is not None
    assert calibrated is not None
    step = with_rounding(step, work)
    mixed = work.mixed
    if step.mixed and mixed is None:
        mixed = work.mixed = choose(
            calibrated,
            step,
            work.job.policy.max_drop,
            lambda bits: _lost(calibrated, step, bits),
            work.say,
        )
    work.tell("putting weights and activations on grids")
    result, passes, report, promise = make_integers(
        calibrated,
        step,
        target,
        mixed,
        placement=placement,
        made=made,
        tried=work.tried,
        max_drop=work.job.policy.max_drop,
        metric=work.job.policy.metric,
        data=work.job.source.data is not None,
    )
    known = work.record.report()
    work.record.emit(Rewritten(tuple(passes), tuple(known.sites), known.parameters_after))
    work.record.emit(report)
    for found in integer_ranges(result, target):
        work.record.emit(found)
    if work.job.cast is not None:
        work.tell(f"lowering to {work.job.cast.precision}")
        result = cast_beside_grids(work.job.cast, result, calibrated.inputs, work.record)
    return result, promise


def in_floats(placement: Placement, work: Work) -> None:
    """Record that a target's file stays in floats, and why."""
    step, calibrated = work.job.quantize, work.calibrated
    assert step is not None
    assert calibrated is not None
    low, high = placement.interval
    work.record.emit(
        QuantizationReport(
            step.scheme or "int8",
            placement.target,
            evidence=calibrated.evidence,
            placement=placement,
            seconds=calibrated.seconds,
        )
    )
    work.record.emit(
        Noted(
            f"{placement.target}: in floats, as integers take {placement.ratio:.2f} of their time here ({low:.2f} "
            f"to {high:.2f}); `--no-keep-if-faster` writes integers all the same"
        )
    )


def make_integers(
    calibrated: Calibrated,
    step: Quantize,
    target: str,
    mixed: MixedReport | None = None,
    *,
    placement: Placement | None = None,
    made: Made | None = None,
    tried: dict[str, float] | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    data: bool = False,
) -> tuple[Graph, list[PassReport], QuantizationReport, Promise]:
    """Put weights and activations on the grids that the runtime of a target wants.

    Args:
        placement: what stays in floats.
        made: the network, where it has been made.
        tried: what other ways err on held-out inputs.

    Returns:
        The network of few bits, the passes that made it, the report, and what a file of it must keep.

    Raises:
        UsageError: the target has kernels for none of the layers.
    """
    start = time.perf_counter()
    bits = mixed.bits if mixed is not None else None
    about = About.of(calibrated.graph, calibrated.measured)
    chosen = parse(pipeline(step, target, about, bits))
    left = placement.layers if placement is not None else ()
    names = [layer for item in left for layer in item.layers]
    result, passes = made or run_pipeline(with_floats(calibrated.graph, names), chosen)
    layers = any(linear_of(node) is not None for node in calibrated.graph.nodes)
    _require_grids(passes, layers, target, step)
    result.samples = None
    promise = Promise.of(calibrated.inputs, calibrated.labels, calibrated.graph, result, metric)
    promise = replace(promise, coarse=any(getattr(item, "bits", 8) < _FINE for item in chosen))
    scheme = step.scheme or "int8"
    grids = [node for node in result.nodes if node.target in (quantize_op, on_grid)]
    covered = [node for node in grids if str(node.args[0]) in calibrated.covered]
    share = len(covered) / len(grids) if grids else None
    evidence = replace(calibrated.evidence, covered=share)
    drift = promise.drift()
    trust = confidence(evidence, drift) if step.ranged and not data else None
    blocked = _without_kernel(passes)
    report = QuantizationReport(
        scheme,
        target,
        evidence=evidence,
        weights=sum(
            item.rewrites for item in passes if Effect.STORES_INTEGERS.value in item.effects
        ),
        activations=len(grids),
        drift=drift,
        confidence=trust,
        blocked=blocked,
        mixed=mixed,
        tried=tried or {},
        placement=placement,
        max_drop=max_drop,
        warnings=[
            *_doubts(evidence, trust),
            *_against(calibrated.graph, target, scheme),
            *_heavy_floats(calibrated.graph, result),
        ],
        seconds=calibrated.seconds + time.perf_counter() - start,
    )
    return result, passes, report, promise


def _without_kernel(passes: list[PassReport]) -> dict[str, str]:
    """The layers that stay in floats because the target has no kernel for them, and why."""
    found = (x for item in passes for x in item.declined if x.code == Reason.NO_KERNEL.code)
    return {x.site: x.detail for x in found}


def _require_grids(passes: list[PassReport], layers: bool, target: str, step: Quantize) -> None:
    """Refuse to quantise a network of which every layer would stay as it is, or that has no ``layers``."""
    blocked = _without_kernel(passes)
    stored = [item for item in passes if Effect.STORES_INTEGERS.value in item.effects]
    if any(item.rewrites for item in stored) or (layers and not blocked):
        return
    if not layers:
        raise UsageError(
            "there is nothing to put on a grid: this network has no convolution, product or table of weights "
            "with kernels in integers",
            hint="`normfold convert` writes it in floats",
        )
    why = Counter(blocked.values()).most_common(1)[0][0]
    others = [
        row.name for row in TARGETS.values() if row.name != target and step.scheme in row.schemes
    ]
    raise UsageError(
        f"no layer of this network has a kernel for `{step.scheme}` in {TARGETS[target].runtime}",
        found=f"of {len(blocked)} layers `{next(iter(blocked))}` and others: {why}",
        hint="`--quantize int8`, or `--precision fp16` alone"
        + "".join(f"; `--target {name}` has other kernels" for name in others),
    )


def _against(graph: Graph, target: str, scheme: str) -> list[str]:
    """What is known against a scheme in networks like this one."""
    grids = TARGETS[target].grids
    attends = any(row_of(node).attention for node in graph.nodes)
    return [grids.attention] if scheme == "int8" and attends and grids and grids.attention else []


def _heavy_floats(before: Graph, after: Graph) -> list[str]:
    """How much of the weights is as it was, and which ops read it: recurrent ones, tables, left layers."""
    sizes: Counter[str] = Counter()
    names = {str(node.target) for node in before.nodes if node.op == "get_attr"}
    for node in after.nodes:
        tensor = fetch(after.module, str(node.target)) if node.op == "get_attr" else None
        if tensor is not None and tensor.dim() > 1 and node.users and str(node.target) in names:
            sizes[op_name(next(iter(node.users)))] += tensor.numel() * tensor.element_size()
    total = sum(sizes.values())
    if not total or total < _HEAVY * before.parameter_bytes():
        return []
    parts = ", ".join(f"{op} {size / 1e6:.2f} MB" for op, size in sizes.most_common(3))
    return [f"{total / before.parameter_bytes():.0%} of the weights stay in floats: {parts}"]


def _lost(calibrated: Calibrated, step: Quantize, bits: dict[str, int]) -> float:
    """Points that the network loses with these bits."""
    text = pipeline(step, "ort-x86", About(), bits)
    result, _ = run_pipeline(calibrated.graph, parse(text))
    promise = Promise.of(calibrated.inputs, calibrated.labels, calibrated.graph, result)
    made = QuantizationReport(step.scheme or "int8", "ort-x86", drift=promise.drift())
    return math.inf if made.lost is None else made.lost


def confidence(evidence: Evidence, drift: dict[str, Any]) -> Confidence:
    """What is known without data, put on one scale: 1 at what sound networks show, 0.5 where doubt begins.

    The bounds of the loss are those that told sound from lying statistics on trained networks; the divergence is
    that on the synthesised inputs themselves, which flatters, and counts only when it is large.
    """
    parts = {}
    if evidence.loss is not None:
        parts["statistics"] = _falling(evidence.loss, Evidence.SUSPICIOUS)
    if evidence.distance is not None:
        parts["ranges"] = _falling(evidence.distance, 1.5)
    if drift.get("kl") is not None:
        parts["divergence"] = _falling(float(drift["kl"]), 0.1)
    if evidence.covered is not None:
        parts["coverage"] = min(1.0, evidence.covered)
    return Confidence(min(parts.values(), default=0.0), parts)


def _falling(value: float, doubt: float) -> float:
    """1 up to a quarter of ``doubt``, 0.5 at it, 0 from four times it on; even steps of the logarithm between."""
    return min(1.0, max(0.0, 0.5 - math.log(max(value, 1e-12) / doubt, 4) / 2))


def _doubts(evidence: Evidence, trust: Confidence | None) -> list[str]:
    found = []
    if evidence.doubtful:
        found.append(
            f"the statistics of the norms are not matched (loss {evidence.loss:.2f}, sound networks come below "
            f"{Evidence.SUSPICIOUS:g}; {evidence.source}): more `--synthesis-steps`, the range of valid pixels "
            "(`--pixels`), or `--data`"
        )
    elif trust is not None and trust.score < Confidence.TRUSTED:
        weakest = min(trust.parts, key=trust.parts.__getitem__) if trust.parts else "nothing known"
        found.append(
            f"little is known of this network ({weakest}): judge it on data before deployment"
        )
    worst = sorted(evidence.apart.items(), key=lambda item: abs(math.log(item[1])))[-3:]
    found += [
        f"`{name}`: measured {ratio:.3g} times as wide as its statistics say"
        for name, ratio in worst
    ]
    return found
