"""Masks of every kind in half precision: never NaN, and still masks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import perturb
from tests.sampling import every_other
from tests.targets.halves import NEAR, lowered, x

HALF, FULL = torch.float16, torch.float32
DTYPES = tuple(NEAR)


class Masked(nn.Module):
    """Attention by hand behind a mask that is made in one of the usual ways."""

    buffer: Tensor

    def __init__(self, way: str, least: float) -> None:
        super().__init__()
        self.way, self.least = way, least
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)
        hidden = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), least)
        self.register_buffer("buffer", hidden)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores, seen = q @ k.mT, seen[:, None, :]
        if self.way == "fill":
            scores = scores.masked_fill(seen == 0, self.least)
        elif self.way == "where":
            scores = torch.where(seen.bool(), scores, self.least)
        elif self.way == "where-tensor":
            scores = torch.where(seen.bool(), scores, torch.tensor(self.least))
        elif self.way == "add":
            scores = scores + (1.0 - seen.to(scores.dtype)) * self.least
        elif self.way == "subtract":
            scores = scores - (1.0 - seen.to(scores.dtype)) * -self.least
        elif self.way == "buffer":
            scores = scores + self.buffer
        elif self.way == "both":
            scores = scores + self.buffer + (1.0 - seen.to(scores.dtype)) * self.least
        elif self.way == "full":
            hidden = torch.full((x.shape[0], 1, 6), self.least).masked_fill(seen == 1, 0.0)
            scores = scores + hidden
        else:
            mask = seen.bool() if self.way == "sdpa" else torch.log(seen.float())
            scores = F.scaled_dot_product_attention(q, k, v, mask)
            return self.out(scores)  # type: ignore[no-any-return]
        y: Tensor = self.out(scores.softmax(-1) @ v)
        return y


LEAST = {"-inf": -math.inf, "finfo.min": torch.finfo(FULL).min, "-1e9": -1e9, "-1e4": -1e4}
WAYS = ("fill", "where", "where-tensor", "add", "subtract", "buffer", "both", "full")
MASKS = [
    (way, least)
    for way in WAYS
    for place, least in enumerate(LEAST)
    if way in ("fill", "add") or (place + WAYS.index(way)) % 2  # a covering half of the others
    # these are NaN in float32 as well: 0 * inf, and minus infinity twice in a row that sees nothing
    if not (least == "-inf" and way in ("add", "subtract", "both"))
]


@pytest.mark.parametrize("way", ["sdpa", "fill", "where"])
def test_a_mask_that_hides_nothing_is_no_island(way: str) -> None:
    """What was measured never met the number that it fills with."""
    net = perturb(Masked(way, torch.finfo(FULL).min))
    given = (x(), torch.ones(2, 6, dtype=torch.int64))
    found = lowered(net, *given, inputs=[given])
    assert found.islands == []


@pytest.mark.parametrize(
    ("way", "least"), [*every_other(MASKS), ("sdpa", "-inf"), ("sdpa-float", "-inf")], ids=str
)
def test_masks_never_give_nan(way: str, least: str) -> None:
    net = perturb(Masked(way, LEAST[least]))
    seen = torch.ones(2, 6, dtype=torch.int64)
    seen[1, 4:] = 0
    blind = seen.clone()
    if "sdpa" in way or least == "-1e9":
        blind[0] = 0  # a row that sees nothing: an average over all, or zeros
    graph = lowered(net, x(), seen).graph
    allowed = {"mul", "sub"} if way == "subtract" else {"mul"}
    if least == "-1e4":  # twice, it is more than half precision should hold
        allowed |= {"add", "softmax"}
    for dtype in DTYPES if way in ("fill", "add") else (HALF,):
        found = lowered(graph, dtype=dtype, inputs=[(x(), seen), (x(), blind)])
        assert set(found.islands) <= allowed
        assert found.dtype("linear") == {dtype}
        assert found.error(x(), seen) < NEAR[dtype]
        assert all(bool(y.isfinite().all()) for y in found.run(x(), blind))
        if way in ("fill", "where", "where-tensor", "sdpa", "sdpa-float"):
            # otherwise it is noise: 1e9 plus a score is another number in every type
            assert found.error(x(), blind) < NEAR[dtype]


def test_masked_logits_are_still_masked_where_they_come_out() -> None:
    class Logits(nn.Module):
        def __init__(self, least: float) -> None:
            super().__init__()
            self.fc, self.least = nn.Linear(8, 8), least

        def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
            return self.fc(x).masked_fill(~allowed, self.least)  # type: ignore[no-any-return]

    allowed = torch.rand(2, 6, 8) > 0.3
    for least in (-math.inf, -1e9, torch.finfo(FULL).min):
        found = lowered(Logits(least), x(), allowed)
        assert found.islands == []
        (result,) = found.run(x(), allowed)
        assert bool((result[~allowed] < -1e4).all())
        assert math.isfinite(least) or bool((result[~allowed] == least).all())
        assert found.error(x(), allowed) < NEAR[HALF]
