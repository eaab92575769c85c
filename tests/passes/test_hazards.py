"""Networks on which a fold was once wrong, or crashed: two edits on one op, casts, odd operands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from tests.nets import perturb


class MapAndInverse(nn.Module):
    """y + 2 conv(y): the conv takes a bias map as reader of y, and 1 / a as the other side of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(F.gelu(x))
        out: Tensor = self.out(torch.add(y, self.conv(y), alpha=2))
        return out


class CastBefore(nn.Module):
    """A norm behind a cast to integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x).to(torch.int64).to(torch.float32))
        return F.gelu(out)


class CastBehind(nn.Module):
    """A norm in front of a cast to integers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm(F.gelu(x)).to(torch.int32).to(torch.float32))
        return out


class TimesVector(nn.Module):
    """matmul with a vector of run time, as long as the axis that the norm works on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(torch.matmul(x, self.linear(x.mean((0, 1)))))
        return F.gelu(out)


class GroupedQueries(nn.Module):
    """Attention with fewer value heads than query heads, then a norm over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, 4, 2).transpose(1, 2)
        k = self.k(x).view(batch, tokens, 2, 2).transpose(1, 2)
        v = self.v(x).view(batch, tokens, 2, 2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        features = mixed.transpose(1, 2).reshape(batch, tokens, 8)
        return F.gelu(self.norm(features.transpose(1, 2)))


class RepeatedRow(nn.Module):
    """Attention whose rows are reindexed with repeats: they no longer sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.register_buffer("index", torch.tensor([0, 0, 2, 3, 3]))

    def forward(self, x: Tensor) -> Tensor:
        rows = (x @ x.transpose(1, 2)).softmax(-1).index_select(-1, self.get_buffer("index"))
        return F.gelu(self.norm((rows @ self.v(x)).transpose(1, 2)))


class NormedValues(nn.Module):
    """A norm on values that several query heads share, read through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, 4, 2).transpose(1, 2)
        k = x[..., :4].reshape(batch, tokens, 2, 2).transpose(1, 2)
        v = self.norm(F.gelu(x[..., 4:]).transpose(1, 2)).transpose(1, 2)
        v = v.reshape(batch, tokens, 2, 2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, 8))
        return out


class ShiftFitsOneSide(nn.Module):
    """A shift behind a sum whose first side has no channels to take it."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.shift = (
            nn.Parameter(torch.randn(1, 1, 5, 5)),
            nn.Parameter(torch.randn(4, 1, 1)),
        )
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu((self.map + self.conv(x)) + self.shift)


class PickedByData(nn.Module):
    """The router of a mixture of experts: a shift that only the choice sees, of scores picked by the choice."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.shift = nn.Linear(6, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.router(x)
        chosen = (scores + self.shift).topk(2).indices
        return scores.gather(-1, chosen)


CASES = {
    "picked-by-data": (PickedByData, (5, 6), "left"),
    "map-and-inverse": (MapAndInverse, (2, 4, 6, 6), "gone"),
    "cast-before": (CastBefore, (2, 4, 5, 5), "left"),
    "cast-behind": (CastBehind, (2, 4, 5, 5), "left"),
    "times-vector": (TimesVector, (2, 5, 5), "left"),
    "grouped-queries": (GroupedQueries, (2, 5, 8), "left"),
    "repeated-row": (RepeatedRow, (2, 5, 6), "left"),
    "normed-values": (NormedValues, (2, 5, 8), "left"),
    "shift-fits-one-side": (ShiftFitsOneSide, (2, 4, 5, 5), "gone"),
}


@pytest.mark.parametrize("options", ["", "{zero-padding=map}"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_right(case: str, options: str) -> None:
    kind, shape, state = CASES[case]
    module = perturb(kind()).eval()
    graph = normfold.capture(module, (9 * torch.randn(shape),))
    _, report = normfold.run(graph, f"canonicalize,fold-affine{options},restore,bake")
    assert report.ok
    assert [site.state for site in report.sites] == [state]
