"""Moments that are derived, against a million samples and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.graph import capture
from normfold.graph.intervals import Interval
from normfold.ranges.analytic import DEVIATIONS, _integrated, assumed, derive, normal
from normfold.ranges.ranges import measure
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.ranges.nets import Attention

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_of_a_function(name: str) -> None:
    function = FUNCTIONS[name]
    mean, std = torch.tensor([-3.0, -0.4, 0.0, 1.5, 5.0]), torch.tensor([1.0, 2.0, 0.5, 3.0, 4.0])
    found = _integrated(function, normal(mean, std**2))
    z = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0))
    sampled = function(mean + z * std)
    torch.testing.assert_close(found.mean, sampled.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.variance.sqrt(), sampled.std(0), rtol=0.01, atol=0.01)
    assert bool((found.low <= sampled.amin(0) + 0.05).all())  # of 49 points
    assert bool((found.high >= sampled.amax(0) - 0.05).all())


def test_a_relu_in_closed_form() -> None:
    """E[max(x, 0)] = m Phi(m / s) + s phi(m / s)."""
    for m, s in ((0.3, 1.0), (-2.0, 0.7), (4.0, 2.0)):
        found = _integrated(F.relu, normal(torch.tensor([m]), torch.tensor([s * s])))
        big = 0.5 * (1 + math.erf(m / s / math.sqrt(2)))
        small = math.exp(-0.5 * (m / s) ** 2) / math.sqrt(2 * math.pi)
        assert float(found.mean) == pytest.approx(m * big + s * small, rel=0.01, abs=2e-3)


class Net(nn.Module):
    """Norms in some places, and ops that carry what they tell to others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.side, self.head = nn.Conv2d(8, 8, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(x)))
        y = F.silu(self.side(x))
        return self.head(torch.cat((x, x * y.sigmoid() + y), 1).mean((2, 3)))  # type: ignore[no-any-return]


def test_every_tensor_behind_a_norm_is_known() -> None:
    x = torch.randn(2, 3, 9, 9)
    graph, _ = run_pipeline(
        capture(perturb(Net()), (x,)), parse("canonicalize,fold-affine,restore,bake")
    )
    found = derive(graph)
    names = {
        node.name
        for node in graph.nodes
        if node.op == "call_function" and node.meta["val"].dim() > 1
    }
    assert {node.name for node in found} >= {
        node.name for node in graph.nodes if node.op == "call_function" and node.name in names
    } - {node.name for node in graph.nodes if node.meta.get("normfold_static")}


def test_nothing_is_guessed() -> None:
    module = Compose(lambda m, x: F.relu(m.conv(x)), conv=nn.Conv2d(3, 4, 1))
    graph = capture(perturb(module), (torch.randn(2, 3, 5, 5),))
    assert derive(graph) == {}
    assert (
        derive(graph, Interval(-1.0, 1.0)) != {}
    )  # pixels are known, and all that is made of them


def test_intervals_hold_what_is_measured() -> None:
    torch.manual_seed(0)
    module = Net()
    perturb(module)
    x = torch.randn(64, 3, 9, 9)
    with torch.no_grad():  # a norm that remembers this batch
        y = module.first(x)
        module.bn.running_mean, module.bn.running_var = y.mean((0, 2, 3)), y.var((0, 2, 3))
    graph, _ = run_pipeline(
        capture(module, (x[:2],)), parse("canonicalize,fold-affine,restore,bake")
    )
    derived = derive(graph)
    measured = measure(graph, [(x,)])
    assert derived
    for node, interval in derived.items():
        seen = measured[node].interval
        width = interval.high - interval.low
        assert interval.low <= seen.low + 0.1 * width, node.name
        assert interval.high >= seen.high - 0.1 * width, node.name
        assert width < 2 * DEVIATIONS * max(seen.high - seen.low, 1e-6), node.name


def test_attention_and_norms() -> None:
    """Everything in a transformer is derived from its pixels, and holds what is measured."""
    torch.manual_seed(0)
    x = torch.rand(32, 3, 16, 16) * 2 - 1
    graph = capture(perturb(Attention()), (x[:2],))
    derived = derive(graph, Interval(-1.0, 1.0))
    measured = measure(graph, [(x,)])
    names = {node.name for node in assumed(graph)}
    assert "linear" in names  # behind the first norm
    assert "conv2d" not in names
    assert set(measured) <= set(derived)
    for node, item in measured.items():
        told = derived[node]
        width = told.high - told.low
        assert told.low <= item.interval.low + 0.1 * width, node.name
        assert told.high >= item.interval.high - 0.1 * width, node.name
