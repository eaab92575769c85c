"""One network through the compiler: capture, fold, compare in float64, bake, compare in fp32."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import CaptureError
from normfold.ir import Graph, Site, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ops.table import BATCH_NORM_OPS
from normfold.report import Declined
from normfold.rewrite import parse, run_pipeline
from tests.zoo.models import Member, build

ALGEBRA = 1e-10
SPREAD = 1e-4
ULPS = 64 * torch.finfo(torch.float32).eps


@dataclass
class Row:
    """What became of one network. Errors are relative to the largest magnitude of each output."""

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    parameters: int = 0
    norms: int = 0
    left: dict[str, int] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    borders: dict[str, int] = field(default_factory=dict)
    capture_seconds: float = 0.0
    pass_seconds: float = 0.0
    bake_seconds: float = 0.0
    total_seconds: float = 0.0
    nodes: int = 0
    algebra: float = math.nan
    baseline: float = math.nan
    rounding: float = math.nan
    spread: float = math.nan

    @property
    def gone(self) -> int:
        return self.norms - sum(self.left.values())

    @property
    def ratio(self) -> float:
        """The compiled network's fp32 error over the original's."""
        return self.rounding / self.baseline if self.baseline else math.nan

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gone": self.gone}


def trial(member: Member, positive: bool = False) -> Row:
    """Run one member; failures are written into the row. ``positive`` as in `build`."""
    row = Row(member.source, member.family, member.name)
    start = time.perf_counter()
    try:
        _run(member, positive, row)
    except Exception as error:  # the zoo goes on; the row says what happened
        text = " ".join(str(error).split())
        row.error = row.error or f"{type(error).__name__}: {text[:400]}"
    row.total_seconds = time.perf_counter() - start
    row.ok = not row.error
    return row


def _run(member: Member, positive: bool, row: Row) -> None:
    module, x = build(member, positive)
    row.parameters = sum(parameter.numel() for parameter in module.parameters())
    graph, row.capture_seconds, row.note = captured(module, (x,))
    row.nodes = sum(1 for _ in graph.nodes)
    start = time.perf_counter()
    folded, reports = run_pipeline(graph, parse("canonicalize,fold-affine,restore"))
    row.pass_seconds = time.perf_counter() - start
    fold = reports[1]
    row.borders = _borders(fold.edits)
    _count(folded, fold.declined, row)
    start = time.perf_counter()
    baked, _ = run_pipeline(folded, parse("bake"))
    row.bake_seconds = time.perf_counter() - start

    reference = outputs(Evaluator(graph.module, Float64())(x))
    row.spread = min(map(spread, reference))
    row.algebra = worst_error(outputs(Evaluator(folded.module, Float64())(x)), reference)
    with torch.no_grad():
        row.baseline = worst_error(outputs(module(x)), reference)
        row.rounding = worst_error(outputs(baked.module(x)), reference)
    if not all(bool(value.isfinite().all()) for value in reference):
        row.error = "the perturbed original is not finite"
    elif not row.spread >= SPREAD:
        row.error = f"the outputs of two inputs differ by {row.spread:.1e} only: nothing is tested"
    elif not row.algebra <= ALGEBRA:
        row.error = f"float64 error {row.algebra:.2e}"
    elif not row.rounding <= 4 * row.baseline + ULPS:
        row.error = f"fp32 error {row.rounding:.2e}, the original has {row.baseline:.2e}"
    elif (remains := _remains(baked)) > 2 * len(fold.declined):
        row.error = f"{remains} per-channel ops remain for {len(fold.declined)} declined sites"


def captured(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Graph, float, str]:
    """The graph with a dynamic batch where that works, else a fixed one; seconds; what was said."""
    start = time.perf_counter()
    note = ""
    try:
        graph = capture(module, args)
    except CaptureError as error:
        note = "fixed batch: " + " ".join(str(error).split())[:300]
        graph = capture(module, args, dynamic=None)
    return graph, time.perf_counter() - start, note


def _count(graph: Graph, declined: list[Declined], row: Row) -> None:
    """Count the BatchNorms, and those of which an op is left, by reason code."""
    row.norms = len({_module(site) for site in graph.sites.values() if _is_batch_norm(site)})
    codes: dict[str, str] = {}
    for decline in declined:
        site = graph.sites.get(decline.site)
        if site is not None and _is_batch_norm(site):
            codes.setdefault(_module(site), decline.code)
            at = f"{decline.code} {decline.detail} at {decline.node}"
            row.sites.setdefault(_module(site), at)
    row.left = dict(Counter(codes.values()))


def _borders(edits: list[str]) -> dict[str, int]:
    """How often a shift met zero padding: a precomputed map is added, or another value is padded.

    Nothing per channel is left, but the op that is there instead is not free.
    """
    maps = sum(edit.endswith("(map)") for edit in edits)
    pads = sum(edit.endswith(("(pad)", "pads with the shift")) for edit in edits)
    return {name: count for name, count in (("map", maps), ("pad", pads)) if count}


def _is_batch_norm(site: Site) -> bool:
    frozen = site.kind == "constant" and site.module_type.startswith("FrozenBatchNorm")
    return frozen or site.kind in ("batch-norm", "weight-standardisation")


def _module(site: Site) -> str:
    """A frozen norm is a multiplication and an addition: two sites of one module."""
    return site.path.split("#")[0] if site.kind == "constant" else site.path


def _remains(graph: Graph) -> int:
    """Ops on activations with one number per channel: batch norms, arithmetic with a vector."""
    found = 0
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        if is_static(node):
            continue
        if op_name(node) in BATCH_NORM_OPS:
            found += 1
        elif op_name(node) in ("add", "sub", "mul", "div"):
            found += any(_holds_channels(operand) for operand in node.args[:2])
    return found


def _holds_channels(operand: Any) -> bool:
    """True for a parameter of shape (C, 1, 1), with or without leading axes of size 1."""
    if not is_static(operand) or not operand.meta["val"].is_floating_point():
        return False
    sizes = shape_of(operand)
    return len(sizes) >= 3 and sizes[-2:] == (1, 1) and sum(size > 1 for size in sizes) == 1


def outputs(tree: Any) -> list[Tensor]:
    """The floating tensors among what a network returned."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def worst_error(values: list[Tensor], reference: list[Tensor]) -> float:
    """The largest error of any output; NaN counts as infinite."""
    worst = 0.0
    for value, wanted in zip(values, reference, strict=True):
        scale = wanted.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        error = float((value.double() - wanted).abs().max() / scale)
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def spread(value: Tensor) -> float:
    """How far the two samples lie apart: near zero, the output would hide what happens inside."""
    apart = (value[0] - value[1]).abs().max() / value.abs().max()
    return float(apart)
