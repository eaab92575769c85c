"""Channels that hardly matter go, within what is allowed; what they were on average stays in a bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.pruning import linears
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass

IMAGES = torch.randn(32, 3, 9, 8)
SMALL = [1, 4, 5]


def plain(self: Any, x: Tensor) -> Any:
    return self.last(torch.relu(self.norm(self.first(x))))


def build(padding: int = 0) -> Any:
    torch.manual_seed(0)
    net: Any = perturb(
        Compose(
            plain,
            first=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            last=nn.Conv2d(8, 5, 3, padding=padding),
        )
    )
    with torch.no_grad():
        net.norm.weight[SMALL] = 1e-5
        net.norm.bias[SMALL] = 0.7
    return net


def pruned(net: nn.Module, options: str, samples: bool = True) -> Any:
    graph = capture(net, (IMAGES[:2],))
    graph.samples = [((IMAGES,), {})] if samples else None
    text = f"canonicalize,fold-affine,prune-small-channels{options},restore,bake"
    return run_pipeline(graph, parse(text))


@pytest.mark.parametrize(("threshold", "left"), [("1e-3", 5), ("1e-8", 8), ("0.9", 1)])
def test_what_goes_is_what_a_reader_may_lose(threshold: str, left: int) -> None:
    net = build()
    result, _ = pruned(net, f"{{threshold={threshold}}}")
    first, last = (tuple(linear.weight.meta["val"].shape) for linear in linears(result))
    assert first[0] == last[1]
    assert left <= first[0] <= left + 2
    with torch.no_grad():
        mine, theirs = result(IMAGES), net(IMAGES)
    error = (mine - theirs).square().mean().sqrt() / theirs.std()
    assert error < 2 * float(threshold) + 1e-6


def test_what_is_padded_with_zeros_keeps_what_is_not_zero() -> None:
    """A mean of 0.7 has no place to stand at the border."""
    result, _ = pruned(build(padding=1), "")
    first, _ = linears(result)
    assert first.out_features == 8


def test_groups_side_by_side() -> None:
    """Two convolutions whose results one op reads together."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.last(torch.relu(torch.cat([self.a(self.first(x)), self.b(self.second(x))], 1)))

    torch.manual_seed(0)
    net: Any = perturb(
        Compose(
            forward,
            first=nn.Conv2d(3, 8, 3),
            a=nn.BatchNorm2d(8),
            second=nn.Conv2d(3, 6, 3),
            b=nn.BatchNorm2d(6),
            last=nn.Conv2d(14, 5, 1),
        )
    )
    with torch.no_grad():
        for norm in (net.a, net.b):
            norm.weight[SMALL] = 1e-5
            norm.bias[SMALL] = 0.7
    result, _ = pruned(net, "")
    shapes = [tuple(linear.weight.meta["val"].shape[:2]) for linear in linears(result)]
    assert shapes == [(5, 3), (3, 3), (5, 8)]
    with torch.no_grad():
        torch.testing.assert_close(result(IMAGES), net(IMAGES), rtol=1e-3, atol=1e-3)


def test_samples_are_needed() -> None:
    _, reports = pruned(build(), "", samples=False)
    report = next(item for item in reports if item.name == "prune-small-channels")
    assert {item.code for item in report.declined} == {"NF127"}


def test_golden() -> None:
    graph = capture(build(), (IMAGES[:2],))
    graph.samples = [((IMAGES,), {})]
    golden_pass("prune-small-channels/conv", graph, "canonicalize,fold-affine")
