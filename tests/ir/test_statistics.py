"""Statistics of norms stay true of the tensors that hold them, whatever folding does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.ir import Graph, capture
from normfold.ir.facts import put
from normfold.ir.statistics import Statistics, statistics_of
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb

ROWS = 64


class Seen(fx.Interpreter):
    """Every tensor of a run."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n] = value
        return value


class Plain(nn.Module):
    """Convolution, norm, ReLU: folded backward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))))  # type: ignore[no-any-return]


class Before(nn.Module):
    """Norm, convolution: folded forward, and the tensor in front keeps what the norm read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        return self.conv(self.bn(x)) + self.conv(self.bn(x)).mean()  # type: ignore[no-any-return]


class Chain(nn.Module):
    """Two norms without anything nonlinear between: the second goes through what the first is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.bn2, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(F.max_pool2d(self.bn1(self.first(x)), 2))
        return self.conv(F.max_pool2d(x, 2).sigmoid())  # type: ignore[no-any-return]


def trained(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """A network in float64 whose running statistics are those of one batch, exactly, norm by norm."""
    torch.manual_seed(0)
    module, x = perturb(build()).double(), torch.randn(ROWS, 3, 20, 20, dtype=torch.float64)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]

    def measure(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].detach(), (0, 2, 3), correction=0)
        norm.running_mean, norm.running_var = mean, variance - norm.eps

    for norm in norms:
        norm.register_forward_pre_hook(measure)  # in eval mode: the next norm sees what it will see
    module(x)
    for norm in norms:
        norm._forward_pre_hooks.clear()
    return module, x


@pytest.mark.parametrize("build", [Plain, Before, Chain])
@pytest.mark.parametrize("pipeline", ["canonicalize", "canonicalize,fold-affine,restore,bake"])
def test_true_of_the_tensor(build: Callable[[], nn.Module], pipeline: str) -> None:
    module, x = trained(build)
    graph, _ = run_pipeline(capture(module, (x,)), parse(pipeline))
    assert _check(graph, x) >= 1


def _check(graph: Graph, x: Tensor) -> int:
    seen, found = Seen(graph.module), 0
    with torch.no_grad():
        seen.run(x)
    for node, value in seen.values.items():
        statistics = statistics_of(node)
        if statistics is None:
            continue
        rest = [dim for dim in range(value.dim()) if dim != statistics.dim]
        variance, mean = torch.var_mean(value, rest, correction=0)
        torch.testing.assert_close(statistics.mean, mean, rtol=1e-9, atol=1e-9, msg=node.name)
        torch.testing.assert_close(statistics.std, variance.sqrt(), rtol=1e-7, atol=1e-9)
        found += 1
    return found


def test_a_shape_that_does_not_fit_is_unknown() -> None:
    module, x = trained(Plain)
    graph, _ = run_pipeline(capture(module, (x,)), parse("canonicalize"))
    node = next(node for node in graph.nodes if statistics_of(node) is not None)
    put(node, Statistics("bn", 1, torch.zeros(3), torch.ones(3)))
    assert statistics_of(node) is None


def test_moved_and_back() -> None:
    start = Statistics("bn", 1, torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    scale, shift = torch.tensor([-2.0, 0.0]), torch.tensor([3.0, 1.0])
    moved = start.moved(scale, shift)
    assert moved.mean.tolist() == [1.0, 1.0]
    assert moved.std.tolist() == [1.0, 0.0]
    back = moved.before(scale, shift)
    assert back.mean[0] == 1.0
    assert back.std[0] == 0.5
    assert bool(back.mean[1].isnan())  # a scale of zero tells nothing
