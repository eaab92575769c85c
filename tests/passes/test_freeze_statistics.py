"""freeze-statistics: norms that measure each input take averages over samples, and fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.graph import op_name
from normfold.passes.freeze_statistics import FreezeStatistics
from normfold.report import PassReport
from normfold.rewrite import parse, run_pipeline
from normfold.testing import no_op
from tests.nets import perturb
from tests.passes.judge import golden_pass

WHOLE = "canonicalize,freeze-statistics{{{0}}},fold-affine,restore,bake"


class UnMix(nn.Module):
    """UnMix-TNS after its adaptation, at inference (Tomar et al. 2024; K components, no updates)."""

    means: Tensor
    variances: Tensor

    def __init__(self, features: int, components: int = 4, spread: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
        )
        self.register_buffer("means", spread * torch.randn(components, features))
        self.register_buffer("variances", torch.rand(components, features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) to the same shape."""
        own, spread = x.mean((2, 3)), x.var((2, 3), unbiased=False)
        alike = torch.cosine_similarity(own[:, None], self.means[None], dim=2)
        p = torch.softmax(alike / 0.07, 1)[..., None]  # (N,K,1)
        means = (1 - p) * self.means + p * own[:, None]
        variances = (1 - p) * self.variances + p * spread[:, None]
        mean = means.mean(1)
        variance = variances.mean(1) + means.square().mean(1) - mean.square()
        y = (x - mean[:, :, None, None]) / torch.sqrt(variance[:, :, None, None] + 1e-5)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class ByHand(nn.Module):
    """An InstanceNorm by hand."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) to the same shape."""
        deviation = torch.rsqrt(x.var((2, 3), unbiased=False, keepdim=True) + 1e-5)
        return (x - x.mean((2, 3), keepdim=True)) * deviation


NORMS: dict[str, Callable[[], nn.Module]] = {
    "unmix": lambda: UnMix(6),
    "batch": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "by-hand": ByHand,
}


def net(norm: str) -> Any:
    torch.manual_seed(0)
    return perturb(nn.Sequential(nn.Conv2d(3, 6, 3), NORMS[norm](), nn.ReLU(), nn.Conv2d(6, 2, 1)))


def calls(graph: Graph) -> list[str]:
    return [op_name(node) for node in graph.nodes if node.op == "call_function"]


def sampled(module: nn.Module, count: int = 6) -> Graph:
    graph = capture(module, (torch.randn(4, 3, 9, 8),))
    graph.samples = [((torch.randn(4, 3, 9, 8),), {}) for _ in range(count)]
    return graph


def frozen(graph: Graph, options: str = "max-deviation=9") -> tuple[Graph, PassReport]:
    after, reports = run_pipeline(graph, parse(WHOLE.format(options)))
    (found,) = (item for item in reports if item.name == "freeze-statistics")
    return after, found


@pytest.mark.parametrize("norm", ["batch", "instance", "by-hand"])
def test_the_average_is_that_of_all_samples_together(norm: str) -> None:
    module = net(norm)
    graph = sampled(module)
    after, report = frozen(graph)
    assert report.rewrites == 1
    assert calls(after) == ["conv2d", "relu", "conv2d"]
    conv, layer, act, last = module
    with torch.no_grad():
        x = torch.cat([sample[0][0] for sample in graph.samples or ()])
        y = conv(x).double()
        mean, deviation = y.mean((0, 2, 3)), (y.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()
        y = (y - mean[:, None, None]) / deviation[:, None, None]
        if norm != "by-hand":
            y = y * layer.weight[:, None, None] + layer.bias[:, None, None]
        expected = last.double()(act(y))
        given = Evaluator(after.module, Float64())(x)[0]
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_a_mixture_becomes_one_affine_whose_deviation_is_said() -> None:
    module = net("unmix")
    graph = sampled(module)
    after, report = frozen(graph)
    assert report.rewrites == 1
    assert calls(after) == ["conv2d", "relu", "conv2d"]
    (applied,) = report.applied
    said = float(applied.detail.split(" ")[0])
    x = torch.cat([sample[0][0] for sample in graph.samples or ()])
    with torch.no_grad():
        mine = after.module(x)[0]
        scale = module(x).square().mean().sqrt()
        off = float((mine - module(x)).square().mean().sqrt() / scale)
    assert 0 < said < 0.2
    assert 0.2 * said < off < 5 * said


def test_what_differs_too_much_stays() -> None:
    after, report = frozen(sampled(net("instance")), "max-deviation=1e-3")
    assert {item.code for item in report.declined} == {"NF133"}
    assert "instance_norm" in {op_name(node) for node in after.nodes}


def test_no_samples() -> None:
    graph = capture(net("instance"), (torch.randn(4, 3, 9, 8),))
    assert {item.code for item in frozen(graph)[1].declined} == {"NF127"}


@pytest.mark.parametrize("norm", ["unmix", "batch"])
def test_the_site_is_gone(norm: str) -> None:
    graph = sampled(net(norm))
    _, report = normfold.run(graph, WHOLE.format("max-deviation=9"), verify="off")
    assert {item.state for item in report.sites} == {"gone"}


def test_golden() -> None:
    golden_pass("freeze-statistics/instance", sampled(net("by-hand")), "canonicalize")


def test_no_op() -> None:
    no_op(FreezeStatistics(), nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 6, 6),))
