"""Moments that are derived, against a million samples and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.domains.moments import DEVIATIONS, _integrated, normal
from normfold.domains.observed import measure
from normfold.ir import capture
from normfold.ir.expressions import is_static
from normfold.ir.intervals import Interval
from normfold.ir.statistics import set_statistics
from normfold.ranges.analytic import assumed, derive, moments
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
    } - {node.name for node in graph.nodes if is_static(node)}


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


def _norms() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Norms whose gain and bias stand along axis 1, with as many channels as positions or not, and others."""
    return {
        "group": (nn.GroupNorm(2, 8), (6, 7)),
        "group, square": (nn.GroupNorm(2, 8), (8, 8)),
        "group of a sequence": (nn.GroupNorm(4, 8), (8,)),
        "group, plain": (nn.GroupNorm(2, 8, affine=False), (6, 7)),
        "instance": (nn.InstanceNorm2d(8, affine=True), (6, 7)),
        "instance, remembering": (
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            (6, 7),
        ),
        "batch": (nn.BatchNorm2d(8), (6, 7)),
        "batch of a sequence": (nn.BatchNorm1d(8), (8,)),
        "batch, plain": (nn.BatchNorm1d(8, affine=False), (5,)),
        "layer": (nn.LayerNorm([6, 7]), (6, 7)),
        "root mean square": (nn.RMSNorm(7), (6, 7)),
    }


@pytest.mark.parametrize("pipeline", ["", "canonicalize", "canonicalize,restore,bake"])
@pytest.mark.parametrize("name", _norms())
def test_gain_and_bias_of_a_norm_stand_along_its_axis(name: str, pipeline: str) -> None:
    """Mean, deviation and interval against what is measured, channel by channel."""
    torch.manual_seed(0)
    norm, rest = _norms()[name]
    perturb(norm)
    x = torch.rand(2000, 8, *rest) * 2 - 1
    graph = capture(norm, (x[:2],))
    if pipeline:
        graph, _ = run_pipeline(graph, parse(pipeline))
    for node in graph.nodes:  # a norm that remembers nothing, so that the input tells all
        set_statistics(node, None)
    found = moments(graph, Interval(-1.0, 1.0))
    output = next(reversed(graph.module.graph.nodes)).all_input_nodes[0]
    told, seen = found[output], norm(x).detach()
    assert told.mean.shape == (2, 8, *rest)
    rest_dims = [0, 1] if name in ("layer", "root mean square") else [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(seen, rest_dims, keepdim=True)
    mean, std = (part[0].expand(8, *rest) for part in (mean, variance.sqrt()))
    torch.testing.assert_close(told.mean[0], mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(told.variance[0].sqrt(), std, rtol=0.05, atol=0.02)
    assert bool((told.low[0] <= seen.amin(0)).all())
    assert bool((told.high[0] >= seen.amax(0)).all())


class Joined(nn.Module):
    """Parameters that are joined to an activation, by ops that take lists."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.conv = nn.Parameter(torch.randn(2, 1, 6)), nn.Conv1d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2)
        x = torch.cat((self.token, x), 1)
        return torch.stack((-x, x.sigmoid()), -1).flatten(-2)


def test_parameters_joined_to_an_activation() -> None:
    """A fixed batch: the token is a parameter expression, and no part of the sum is left out."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5) * 2 - 1
    graph = capture(perturb(Joined()), (x,), dynamic=None)
    found, measured = derive(graph, Interval(-1.0, 1.0)), measure(graph, [(x,)])
    assert set(found) == set(measured)
    for node, item in measured.items():
        assert found[node].low <= item.interval.low + 1e-6, node.name
        assert found[node].high >= item.interval.high - 1e-6, node.name
