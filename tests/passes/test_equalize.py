"""equalize: equal weights on both sides, exactly the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.ops.integers import weighted
from normfold.ops.linear import linear_of
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.balance import largest
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass, judge, right, untouched

IMAGE = (2, 3, 9, 8)


class Depthwise(nn.Module):
    """Expand, depthwise, project; a residual around it; grouped and transposed ones behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.expand, self.depthwise = (
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
        )
        self.project = nn.Conv2d(12, 6, 1)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():  # channels of very different sizes
            for layer in (self.expand, self.depthwise, self.grouped, self.up):
                layer.weight.mul_(torch.logspace(-2, 2, layer.weight.shape[0]).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.project(F.relu(self.depthwise(F.leaky_relu(self.expand(x)))))
        x = F.relu(self.up(F.relu(self.grouped(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_equal() -> None:
    graph = capture(perturb(Depthwise()), (torch.randn(IMAGE),))
    right(judge(graph, "equalize"))


def test_a_norm_that_stays_keeps_its_type() -> None:
    """Behind a concatenation a BatchNorm cannot fold; it takes a scale that is computed in float64."""

    def dense(self: Any, x: Tensor) -> Any:
        x = self.second(self.first(x))
        return self.last(torch.cat([x, self.branch(F.gelu(self.norm(x)))], 1))

    layers = {"first": nn.Conv2d(3, 8, 1), "second": nn.Conv2d(8, 6, 1), "norm": nn.BatchNorm2d(6)}
    net = perturb(
        Compose(dense, **layers, branch=nn.Conv2d(6, 4, 3, padding=1), last=nn.Conv2d(10, 3, 1))
    )
    x = torch.randn(2, 3, 9, 8)
    after, _ = run_pipeline(
        capture(net, (x,)), parse("canonicalize,fold-affine,equalize,restore,bake")
    )
    assert "batch_norm" in {op_name(node) for node in after.nodes}
    torch.testing.assert_close(after.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_both_sides_are_equally_large() -> None:
    graph = capture(perturb(Depthwise()).double(), (torch.randn(IMAGE, dtype=torch.float64),))
    after, _ = run_pipeline(graph, parse("equalize{sweeps=18},bake"))
    found = {str(node.args[1]): linear_of(node) for node in after.nodes if weighted(node)}
    expand, depthwise, project = (
        next(linear for name, linear in found.items() if part in name)
        for part in ("expand", "depthwise", "project")
    )
    assert expand is not None
    assert depthwise is not None
    assert project is not None
    for one, other in ((expand, depthwise), (depthwise, project)):
        written, read = largest(after, one, written=True), largest(after, other, written=False)
        torch.testing.assert_close(written, read, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("between", [F.gelu, F.relu6, F.silu])
def test_what_is_not_homogeneous_stops_it(between: object) -> None:
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    module = Compose(lambda m, x: m.second(between(m.first(x))), first=first, second=second)  # type: ignore[operator]
    untouched(capture(perturb(module), (torch.randn(IMAGE),)), "equalize")


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(perturb(Depthwise()), (torch.randn(IMAGE),))
    golden_pass("equalize/depthwise", graph, "canonicalize")
