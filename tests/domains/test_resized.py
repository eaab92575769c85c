"""Graphs of fixed sizes, certified at smaller ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir import Graph
from normfold.judge.certificate import certify
from normfold.rewrite import Rewriter, parse, run_pipeline
from tests.nets import perturb

CENTRED = "canonicalize,fold-affine{split-norms=true},center-stream,restore"


class Patches(nn.Module):
    """A ViT of one block: a class token, positions, attention by hand; 12 heads are of size 1."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.proj = nn.Conv2d(3, 12, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 65, 12))
        self.norm = nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        q, k, v = (
            self.qkv(self.norm(x)).view(x.shape[0], 65, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        scores = torch.softmax(q @ k.transpose(-2, -1), -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(x.shape[0], 65, 12))
        result: Tensor = self.head(self.last(x)[:, 0])
        return result


class Windows(nn.Module):
    """Windows of 4x4 of a map of 16x16: they do not fit into a smaller one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x).permute(0, 2, 3, 1))
        x = x.view(x.shape[0], 4, 4, 4, 4, 6).permute(0, 1, 3, 5, 2, 4).reshape(-1, 6, 16)
        result: Tensor = self.head(self.mix(x).mean(-1))
        return result


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 5, padding=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def captured(net: nn.Module) -> Graph:
    return normfold.capture(perturb(net), (torch.randn(2, 3, 64, 64),))


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (Patches, "24x24"),
        (partial(Patches, 12), "24x24"),
        (Windows, "64x64"),
        (convolutions, "12x12"),
    ],
)
def test_sizes(build: Callable[[], nn.Module], sizes: str) -> None:
    graph = captured(build())
    result, _ = run_pipeline(graph, parse(CENTRED))
    found = certify(graph, result)
    assert found.state == "certified", found
    assert found.sizes.endswith(sizes)
    assert certify(graph, result, small=False).sizes.endswith("64x64")


def test_faults_are_seen_at_small_sizes() -> None:
    graph = captured(Patches())
    result, _ = run_pipeline(graph, parse(CENTRED))
    for node in list(result.nodes):
        if node.op != "get_attr" or "position" not in str(node.target):
            continue
        wrong = result.copy()
        (twin,) = [other for other in wrong.nodes if other.name == node.name]
        with wrong.module.graph.inserting_after(twin):
            rolled = wrong.module.graph.call_function(torch.ops.aten.roll.default, (twin, [1], [1]))
        rolled.meta["val"] = twin.meta["val"]
        for user in set(twin.users) - {rolled}:
            user.replace_input_with(twin, rolled)
        wrong.recompile()
        assert certify(graph, wrong).state == "failed"


def test_what_is_another_at_small_sizes_is_tried_at_full_ones() -> None:
    """A mean over 8x8 places is a sum over 64, at this size only."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 8, 1), nn.ReLU(), Mean())
    graph = captured(net)
    result = graph.copy()
    (mean,) = [node for node in result.nodes if node.target is torch.ops.aten.mean.dim]
    edit = Rewriter(result)
    total = edit.insert_before(mean, torch.ops.aten.sum.dim_IntList, mean.args[0], [2, 3])
    edit.replace_input(
        next(iter(mean.users)),
        mean,
        edit.insert_after(total, torch.ops.aten.div.Tensor, total, 64.0),
    )
    result.recompile()
    found = certify(graph, result)
    assert found.state == "certified", found
    assert found.sizes.endswith("64x64")


def test_axes_exchanged_with_the_batch_are_seen() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    graph = normfold.capture(perturb(net), (torch.randn(4, 4, 6),))
    result = graph.copy()
    edit = Rewriter(result)
    (relu,) = [node for node in result.nodes if node.target is torch.ops.aten.relu.default]
    turned = edit.insert_after(relu, torch.ops.aten.cumsum.default, relu, 0)
    edit.replace_input(next(user for user in relu.users if user is not turned), relu, turned)
    result.recompile()
    assert certify(graph, result).state == "failed"


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])
