"""ViTs without LayerNorms: gains and biases of DyT and Derf fold into what reads them, alphas stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.ir.graph import op_name
from normfold.ir.intervals import Interval
from normfold.judge.certificate import certify
from normfold.ops.table import bounds
from normfold.report.sites import site_statuses
from tests.methods.norms import DynamicTanh
from tests.nets import perturb
from tests.passes.judge import judge, right

WIDTH, DEPTH, HEADS = 16, 3, 2
NORMS: dict[str, Callable[[], nn.Module]] = {
    "DyT": lambda: DynamicTanh(WIDTH),
    "Derf": lambda: DynamicTanh(WIDTH, torch.erf, True),
}


class Block(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.3))  # LayerScale

    def forward(self, x: Tensor) -> Tensor:
        """x (N,tokens,16) to the same shape."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind())
        x = x + self.scale * self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class ViT(nn.Module):
    """4 x 4 patches of 16 x 16 images, a class token, 5 classes."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, WIDTH))
        self.blocks = nn.Sequential(*(Block(norm) for _ in range(DEPTH)))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        """x (N,3,16,16) to logits (N,5)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        y: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


def rewritten(name: str) -> tuple[Graph, Graph, Counter[tuple[str, str]]]:
    torch.manual_seed(0)
    graph = capture(perturb(ViT(NORMS[name])), (torch.randn(2, 3, 16, 16),))
    outcome = right(judge(graph, "canonicalize,fold-affine,restore"))
    statuses = site_statuses(outcome.after, outcome.reports)
    return graph, outcome.after, Counter((item.state, item.code) for item in statuses)


@pytest.mark.parametrize("name", NORMS)
def test_what_folds_and_what_stays(name: str) -> None:
    graph, after, counts = rewritten(name)
    norms = 2 * DEPTH + 1
    stays = {("left", "NF105"): norms}  # the alphas: the stream is read elsewhere too
    if name == "Derf":
        stays["left", "NF115"] = norms  # the shifts behind them
    assert counts == {("gone", ""): 2 * norms + DEPTH, **stays}
    assert certify(graph, after).state == "certified"


@pytest.mark.parametrize("name", NORMS)
def test_what_layers_read_is_known_without_data(name: str) -> None:
    """With the gain folded away, they read values of the function itself."""
    _, after, _ = rewritten(name)
    found = [bounds(node) for node in after.nodes if op_name(node) in ("tanh", "erf")]
    assert found == [Interval(-1.0, 1.0)] * (2 * DEPTH + 1)
