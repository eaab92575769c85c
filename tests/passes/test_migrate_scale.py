"""migrate-scale: exactly the same network, activations and weights equally hard."""

from __future__ import annotations

import pytest
import torch

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.balance import largest_read
from tests.nets import perturb
from tests.passes.judge import golden_pass, judge, right
from tests.ranges.nets import Stack

FOLDED = "canonicalize,fold-affine"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_equal(alpha: float) -> None:
    graph = capture(perturb(Stack(16)), (torch.randint(0, 11, (2, 6)),))
    graph.samples = [(graph.args, {})]
    outcome = right(judge(graph, f"{FOLDED},migrate-scale{{alpha={alpha}}},restore"))
    (report,) = (item for item in outcome.reports if item.name == "migrate-scale")
    assert len(report.applied) == 4
    assert "normfold::channel_affine" not in outcome.ops()  # it is the gain of the norm


def test_without_samples() -> None:
    graph = capture(perturb(Stack(16)), (torch.randint(0, 11, (2, 6)),))
    _, reports = run_pipeline(graph, parse(f"{FOLDED},migrate-scale"))
    assert {item.code for item in reports[-1].declined} == {"NF127"}


def test_half_makes_both_sides_equal() -> None:
    graph = capture(perturb(Stack(16)).double(), (torch.randint(0, 11, (2, 6)),))
    graph.samples = [(graph.args, {})]
    after, _ = run_pipeline(graph, parse(f"{FOLDED},migrate-scale"))
    norm = next(node for node in after.nodes if op_name(node) == "layer_norm")
    (scaled,) = norm.users
    peaks = []

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n is scaled:
                peaks.append(value.abs().flatten(0, -2).amax(0))
            return value

    with torch.no_grad():
        Seen(after.module).run(*graph.args)
    torch.testing.assert_close(peaks[0], largest_read(after, scaled, 2))


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(perturb(Stack(16)), (torch.randint(0, 11, (2, 6)),))
    graph.samples = [(graph.args, {})]
    golden_pass("migrate-scale/stack", graph, FOLDED)
