"""fold-mean: means that linear ops take over, and those that something else reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.passes.fold_mean import FoldMean
from normfold.testing import no_op
from tests.nets import Compose, perturb
from tests.passes.judge import Outcome, golden_pass, judge, right

Build = Callable[[], nn.Module]


def _centred(axis: int | tuple[int, ...] = -1) -> Callable[[Any, Tensor], Any]:
    return lambda self, x: self.f(x - x.mean(axis, keepdim=True))


def _two(self: Any, x: Tensor) -> Any:
    y = x - x.mean(-1, keepdim=True)
    return self.f(y) * self.g(y)


def _beside(self: Any, x: Tensor) -> Any:
    y = x - x.mean(-1, keepdim=True)
    return self.f(y) + y


def _returned(self: Any, x: Tensor) -> Any:
    y = x - x.mean(-1, keepdim=True)
    return self.f(y), y


def _tied(self: Any, x: Tensor) -> Any:
    y = self.table(x.argmax(-1))
    return (x - x.mean(-1, keepdim=True)) @ self.table.weight.t() + y.sum()


def _another(self: Any, x: Tensor) -> Any:
    return self.f(x - x.flip(-1).mean(-1, keepdim=True))


def _twice(self: Any, x: Tensor) -> Any:
    return self.f(torch.sub(x, x.mean(-1, keepdim=True), alpha=2))


IMAGES, ROWS = (2, 6, 5, 4), (2, 5, 6)
CASES: dict[str, tuple[Build, tuple[int, ...], bool, str]] = {
    "linear": (lambda: Compose(_centred(), f=nn.Linear(6, 4)), ROWS, True, ""),
    "without a bias": (lambda: Compose(_centred(), f=nn.Linear(6, 4, bias=False)), ROWS, True, ""),
    "two linears": (
        lambda: Compose(_two, f=nn.Linear(6, 4), g=nn.Linear(6, 4)),
        ROWS,
        True,
        "",
    ),
    "convolution that pads": (
        lambda: Compose(_centred(1), f=nn.Conv2d(6, 4, 3, padding=1)),
        IMAGES,
        True,
        "",
    ),
    "transposed": (
        lambda: Compose(_centred(1), f=nn.ConvTranspose2d(6, 4, 3, 2)),
        IMAGES,
        True,
        "",
    ),
    "grouped": (lambda: Compose(_centred(1), f=nn.Conv2d(6, 4, 3, groups=2)), IMAGES, False, "NF108"),
    "positions": (lambda: Compose(_centred(2), f=nn.Conv2d(6, 4, 3)), IMAGES, False, "NF108"),
    "two axes": (lambda: Compose(_centred((1, 2)), f=nn.Conv2d(6, 4, 3)), IMAGES, False, ""),
    "read by a sum": (lambda: Compose(_beside, f=nn.Linear(6, 6)), ROWS, False, "NF105"),
    "returned": (lambda: Compose(_returned, f=nn.Linear(6, 6)), ROWS, False, "NF104"),
    "tied": (lambda: Compose(_tied, table=nn.Embedding(6, 6)), ROWS, False, "NF102"),
    "mean of another": (lambda: Compose(_another, f=nn.Linear(6, 4)), ROWS, False, ""),
    "taken off twice": (lambda: Compose(_twice, f=nn.Linear(6, 4)), ROWS, False, ""),
}  # fmt: skip


def _folded(outcome: Outcome) -> bool:
    (report,) = (item for item in outcome.reports if item.name == "fold-mean")
    return bool(report.applied)


@pytest.mark.parametrize("name", CASES)
def test_readers(name: str) -> None:
    build, shape, folds, code = CASES[name]
    graph = capture(perturb(build()), (torch.randn(shape),))
    outcome = right(judge(graph, "canonicalize,fold-mean"))
    assert _folded(outcome) == folds
    assert outcome.codes == ({code} if code else set())
    assert certify(graph, outcome.after).ok


def test_a_tied_table_is_copied_where_that_is_allowed() -> None:
    graph = capture(perturb(Compose(_tied, table=nn.Embedding(6, 6))), (torch.randn(ROWS),))
    outcome = right(judge(graph, "canonicalize,fold-mean{untie=true}"))
    assert _folded(outcome)
    assert certify(graph, outcome.after).ok


def test_what_does_not_concern_it() -> None:
    no_op(FoldMean(), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6)), (torch.randn(2, 4),))


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(
        perturb(Compose(_two, f=nn.Linear(6, 4), g=nn.Linear(6, 4))), (torch.randn(ROWS),)
    )
    golden_pass("fold-mean/two", graph, "canonicalize")
