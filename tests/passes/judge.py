"""Run a pipeline on a network and measure what came out, against float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ir.provenance import module_path
from normfold.ir.text import graph_text
from normfold.ops.table import BATCH_NORM_OPS
from normfold.report import Declined, PassReport
from normfold.rewrite import parse, run_pipeline
from normfold.testing.shapes import untrue_shapes

ALGEBRA = 1e-10  # relative error that the un-baked graph may have in float64
ULPS = 8
GOLDENS = Path(__file__).parents[1] / "goldens"


@dataclass
class Outcome:
    """One network before, rewritten, and baked; errors per output, relative to the output's maximum.

    ``algebra``: un-baked, in float64. ``baseline`` and ``error``: original and baked, in their own dtype.
    """

    before: Graph
    after: Graph
    baked: Graph
    reports: list[PassReport]
    algebra: list[float]
    baseline: list[float]
    error: list[float]
    ulp: float

    @property
    def folding(self) -> PassReport:
        return next(report for report in self.reports if report.spec.startswith("fold-affine"))

    @property
    def declined(self) -> list[Declined]:
        return [decline for report in self.reports for decline in report.declined]

    @property
    def codes(self) -> set[str]:
        return {decline.code for decline in self.declined}

    def wrong(self, index: int) -> str:
        """Why output ``index`` is wrong, or nothing."""
        if not self.algebra[index] <= ALGEBRA:
            return f"algebra off by {self.algebra[index]:.2e}"
        allowed = 4 * self.baseline[index] + ULPS * self.ulp
        if not self.error[index] <= allowed:
            return f"baked error {self.error[index]:.2e}, allowed {allowed:.2e}"
        return ""

    def left(self, prefix: str = "") -> list[str]:
        """Norms and per-channel ops in the baked graph under a module path."""
        return [
            node.name
            for node in self.baked.nodes
            if _acts_per_channel(node) and f"{module_path(node)}.".startswith(prefix)
        ]

    def ops(self) -> list[str]:
        """Names of the ops on activations in the baked graph, in order."""
        return [
            op_name(node)
            for node in self.baked.nodes
            if node.op == "call_function" and not is_static(node)
        ]


def _acts_per_channel(node: fx.Node) -> bool:
    name = op_name(node)
    if is_static(node):
        return False
    if name in BATCH_NORM_OPS or name == "normfold::channel_affine":
        return True
    if name not in ("add", "sub", "mul", "div"):
        return False
    constants = [side for side in node.args[:2] if is_static(side)]
    return any(sum(size > 1 for size in shape_of(side)) == 1 for side in constants)  # type: ignore[arg-type]


def fold(
    module: nn.Module,
    *inputs: Tensor,
    options: str = "",
    dynamic: Any = "batch",
) -> Outcome:
    """The preset ``folded`` with ``options`` for fold-affine, judged on ``inputs``."""
    step = f"fold-affine{{{options}}}" if options else "fold-affine"
    return judge(capture(module, inputs, dynamic=dynamic), f"canonicalize,{step},restore")


def judge(graph: Graph, text: str, inputs: tuple[Tensor, ...] | None = None) -> Outcome:
    """Run ``text`` (without bake) on a captured graph, then bake, and measure all three."""
    inputs = graph.args if inputs is None else inputs
    after, reports = run_pipeline(graph, parse(text))
    baked, baking = run_pipeline(after, parse("bake"))
    assert untrue_shapes(after) + untrue_shapes(baked) == []
    reference = _leaves(Evaluator(graph.module, Float64())(*inputs))
    unbaked = _leaves(Evaluator(after.module, Float64())(*inputs))
    with torch.no_grad():
        native = _leaves(graph.module(*inputs))
        result = _leaves(baked.module(*inputs))
    ulp = max(torch.finfo(leaf.dtype).eps for leaf in native)
    return Outcome(
        graph,
        after,
        baked,
        reports + baking,
        [_off(a, b) for a, b in zip(reference, unbaked, strict=True)],
        [_off(a, b) for a, b in zip(reference, native, strict=True)],
        [_off(a, b) for a, b in zip(reference, result, strict=True)],
        ulp,
    )


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _off(reference: Tensor, value: Tensor) -> float:
    assert reference.shape == value.shape, (
        f"shape {tuple(value.shape)}, not {tuple(reference.shape)}"
    )
    scale = reference.abs().max().clamp_min(1e-30)
    return float((reference - value.double()).abs().max() / scale)


def folded(outcome: Outcome) -> Outcome:
    """Assert that every site went and every output is right."""
    right(outcome)
    assert not outcome.declined, [(d.site, d.code, d.detail) for d in outcome.declined]
    assert not outcome.left(), outcome.left()
    return outcome


def right(outcome: Outcome) -> Outcome:
    """Assert that every output is right, whatever was declined."""
    found = {index: why for index in range(len(outcome.error)) if (why := outcome.wrong(index))}
    assert outcome.error, "the network has no output to judge"
    assert not found, found
    return outcome


def declines(outcome: Outcome, *codes: str) -> Outcome:
    """Assert that exactly these reasons were given, and that the outputs are right."""
    right(outcome)
    assert outcome.codes == set(codes), [(d.site, d.code, d.detail) for d in outcome.declined]
    return outcome


def golden(name: str, text: str) -> None:
    """Compare with tests/goldens/<name>.txt; ``UPDATE_GOLDENS=1`` writes it instead (then read the diff)."""
    path = GOLDENS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no golden {path}: write it with UPDATE_GOLDENS=1"
    assert text == path.read_text()


def golden_pass(name: str, graph: Graph, setup: str = "") -> None:
    """Graph text before and after one pass, run behind the passes of ``setup``."""
    if setup:
        graph, _ = run_pipeline(graph, parse(setup))
    after, _ = run_pipeline(graph, parse(name.split("/")[0]))
    assert untrue_shapes(after) == []
    golden(f"{name}.before", graph_text(graph))
    golden(f"{name}.after", graph_text(after))


def untouched(graph: Graph, text: str) -> None:
    """Assert that the last pass of ``text`` finds nothing to do: no edit, the text of the graph the same."""
    *setup, last = parse(text)
    prepared, _ = run_pipeline(graph, setup)
    after, reports = run_pipeline(prepared, [last])
    assert not reports[0].modified
    assert not reports[0].applied
    assert not reports[0].edits
    assert graph_text(after) == graph_text(prepared)
