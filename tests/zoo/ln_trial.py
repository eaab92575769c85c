"""One network through center-stream: capture, convert, compare in float64, bake, compare in fp32.

Each row is also run with its converted norms swapped for RMSNorm *without* any centring. That must be
wrong by far: otherwise the row's small error would prove nothing.

The preset leaves a norm alone where an addition for its bias would stay behind, since that saves nothing.
What is convertible is another question: the row answers it by a second run in which such additions are free.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.nn.functional import rms_norm

from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.sites import norm_sites
from normfold.job.presets import preset
from normfold.ops.table import NORM_OPS
from normfold.passes.center_stream import CenterStream
from normfold.report import PassReport
from normfold.rewrite import parse, run_pipeline
from tests.zoo.ln_models import ln_build
from tests.zoo.models import Member
from tests.zoo.transformers_models import expectations
from tests.zoo.trial import ALGEBRA, SPREAD, ULPS, captured, outputs, spread, worst_error

POWER = 1e-3  # the least error that RMSNorm without centring must make
OP = "centred by an op"  # how center-stream's record of an explicit centring op ends


@dataclass
class NormRow:
    """What became of one network's LayerNorms. Errors are relative to each output's largest magnitude."""

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    parameters: int = 0
    norms: int = 0
    converted: int = 0
    ops: int = 0
    convertible: int = 0
    convertible_ops: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    capture_seconds: float = 0.0
    pass_seconds: float = 0.0
    stream_seconds: float = 0.0
    bake_seconds: float = 0.0
    total_seconds: float = 0.0
    nodes: int = 0
    algebra: float = math.nan
    naive: float = math.nan
    baseline: float = math.nan
    rounding: float = math.nan
    spread: float = math.nan

    @property
    def ratio(self) -> float:
        """The compiled network's fp32 error over the original's."""
        return self.rounding / self.baseline if self.baseline else math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ln_trial(member: Member) -> NormRow:
    """Run one member; failures are written into the row."""
    row = NormRow(member.source, member.family, member.name)
    start = time.perf_counter()
    try:
        row.error = _run(member, row)
    except Exception as error:  # the zoo goes on; the row says what happened
        text = " ".join(str(error).split())
        row.error = f"{type(error).__name__}: {text[:400]}"
    row.total_seconds = time.perf_counter() - start
    row.ok = not row.error
    return row


def _run(member: Member, row: NormRow) -> str:
    """Fill the row in; what is wrong with it, or nothing."""
    module, args = ln_build(member)
    row.parameters = sum(parameter.numel() for parameter in module.parameters())
    graph, row.capture_seconds, row.note = captured(module, args)
    row.nodes = sum(1 for _ in graph.nodes)
    first, *middle, bake = parse(preset("rmsnorm"))
    start = time.perf_counter()
    ready, _ = run_pipeline(graph, [first])
    split = time.perf_counter() - start
    start = time.perf_counter()
    result, reports = run_pipeline(ready, middle)
    row.pass_seconds = split + time.perf_counter() - start
    report = _stream_report(reports)
    row.stream_seconds = report.seconds
    converted = _count(report, row)
    free = [
        replace(item, bias_cost=0.0) if isinstance(item, CenterStream) else item for item in middle
    ]
    widest, reports = run_pipeline(ready, free)
    report = _stream_report(reports)
    every = _converted(report)
    row.convertible, row.convertible_ops = len(every), _ops(report)
    start = time.perf_counter()
    baked, _ = run_pipeline(result, [bake])
    row.bake_seconds = time.perf_counter() - start

    reference = outputs(Evaluator(graph.module, Float64())(*args))
    row.spread = min(map(spread, reference))
    row.algebra = max(
        worst_error(outputs(Evaluator(one.module, Float64())(*args)), reference)
        for one in ([result] if every == converted else [result, widest])
    )
    swapped = Evaluator(ready.module, Swapped(every))
    row.naive = worst_error(outputs(swapped(*args)), reference)
    with torch.no_grad():
        row.baseline = worst_error(outputs(module(*args)), reference)
        row.rounding = worst_error(outputs(baked.module(*args)), reference)
    if not all(bool(value.isfinite().all()) for value in reference):
        return "the perturbed original is not finite"
    return _wrong_numbers(row) or _wrong_counts(ready, baked, row) or _below(member, row)


class Swapped(Float64):
    """Float64, with some LayerNorms of a canonical graph, by site, as RMSNorms of the same input."""

    def __init__(self, sites: set[str]) -> None:
        self.sites = sites

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sites = {site.path for site in norm_sites(node)}
        if not sites & self.sites:
            return super().run(node, args, kwargs)
        x, sizes, weight, bias, eps = (*args, *(None,) * 5)[:5]
        value = rms_norm(x, sizes, weight, 1e-5 if eps is None else eps)
        return value if bias is None else value + bias


def _stream_report(reports: list[PassReport]) -> PassReport:
    return next(item for item in reports if item.spec.startswith("center-stream"))


def _converted(report: PassReport) -> set[str]:
    return {item.site for item in report.applied if item.detail.startswith("rms_norm")}


def _ops(report: PassReport) -> int:
    return sum(edit.endswith(OP) for edit in report.edits)


def _count(report: PassReport, row: NormRow) -> set[str]:
    """Count norms, by what became of them; returns the sites of the converted ones."""
    converted = _converted(report)
    left = {item.site: item for item in report.declined if item.kind == "layer-norm"}
    row.converted = len(converted)
    row.norms = len(converted | set(left))
    row.declined = dict(Counter(item.code for item in left.values()))
    row.sites = {
        site: f"{item.code} {item.reason}; {item.detail} at {item.node} ({item.line})"
        for site, item in left.items()
    }
    row.ops = _ops(report)
    return converted


def _wrong_numbers(row: NormRow) -> str:
    if not row.spread >= SPREAD:
        return f"the outputs of two inputs differ by {row.spread:.1e} only: nothing is tested"
    if not row.algebra <= ALGEBRA:
        return f"float64 error {row.algebra:.2e}"
    if row.convertible and not row.naive >= POWER:
        return f"RMSNorm without centring errs by {row.naive:.1e} only: nothing is tested"
    if not row.rounding <= 4 * row.baseline + ULPS:
        return f"fp32 error {row.rounding:.2e}, the original has {row.baseline:.2e}"
    return ""


def _wrong_counts(ready: Graph, baked: Graph, row: NormRow) -> str:
    """The report against the graph: each LayerNorm that is left has a reason, each other is an RMSNorm."""
    before, after = _norms(ready), _norms(baked)
    left = sum(row.declined.values())
    if before["layer-norm"] > row.norms or after["layer-norm"] != left:
        return (
            f"{before['layer-norm']} LayerNorms, {after['layer-norm']} of them left; "
            f"{row.norms} reported, {left} of them declined"
        )
    new = after["rms-norm"] - before["rms-norm"]
    if new != row.converted:
        return f"{new} new RMSNorms, {row.converted} reported"
    added = _centrings(baked) - _centrings(ready)
    if added != row.ops:
        return f"{added} centring ops in the graph, {row.ops} reported"
    silent = [site for site, why in row.sites.items() if not why.startswith("NF")]
    return f"no reason for {', '.join(silent)}" if silent else ""


def _norms(graph: Graph) -> Counter[str]:
    names = (op_name(node) for node in graph.nodes if not is_static(node))
    return Counter(NORM_OPS[name] for name in names if name in NORM_OPS)


def _centrings(graph: Graph) -> int:
    """Ops x - mean(x)."""
    return sum(
        op_name(node) == "sub"
        and isinstance(mean := node.args[1], fx.Node)
        and op_name(mean) == "mean"
        and mean.args[0] is node.args[0]
        for node in graph.nodes
    )


def _below(member: Member, row: NormRow) -> str:
    """How a transformers network falls short of what is expected of its architecture."""
    expected = expectations().get(member.name) if member.source == "transformers" else None
    if expected is None:
        return ""
    if row.norms != expected.norms:
        return f"{row.norms} LayerNorms found, it has {expected.norms}"
    if row.convertible < expected.converted:
        return f"{row.convertible} convertible, it should be {expected.converted}"
    if row.convertible_ops > expected.ops + row.convertible - expected.converted:
        return f"{row.convertible_ops} centring ops, {expected.ops} are enough"
    return ""
