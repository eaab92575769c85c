"""Approximate passes are judged by what they may cost, and their files; exact ones in front of them exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.judge.verifier import APPROXIMATIONS
from normfold.ops.integers import weighted
from normfold.report import Check
from normfold.rewrite import Exactness, Match, Pass, Rewriter, parse
from tests.nets import perturb


@dataclass(frozen=True)
class Shrink(Pass):
    """Multiply every weight by 1 - share."""

    name: ClassVar[str] = "shrink"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    share: float = 0.01

    def match(self, graph: Graph) -> Iterable[Match]:
        yield from (
            Match(node) for node in graph.nodes if weighted(node) is not None and self.share
        )

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        linear = weighted(match.node)
        assert linear is not None
        smaller = rewriter.expression(torch.ops.aten.mul.Tensor, linear.weight, 1 - self.share)
        rewriter.set_argument(match.node, linear.weight_position, smaller)
        rewriter.record("smaller")


@dataclass(frozen=True)
class OwnBudget(Shrink):
    """The same, with a budget of its own."""

    name: ClassVar[str] = "own-budget"
    budget: ClassVar[float | None] = 0.03


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    )


X = (torch.randn(2, 3, 8, 8),)


def passes(item: Pass) -> list[Pass]:
    return [*parse("canonicalize,fold-affine"), item, *parse("restore,bake")]


@pytest.mark.parametrize(("share", "ok"), [(0.01, True), (0.1, False), (0.0, True)])
def test_a_pass_with_a_budget_of_its_own(share: float, ok: bool) -> None:
    _, report = normfold.run(normfold.capture(net(), X), passes(OwnBudget(share)))
    assert report.ok == ok
    kinds = [item.check.kind for item in report.passes if item.check is not None]
    assert set(kinds) == (set(APPROXIMATIONS) if share else {"algebra", "rounding"})


def test_a_budget_must_come_from_somewhere() -> None:
    with pytest.raises(
        UsageError, match="`shrink` is approximate, and nothing says what it may cost"
    ):
        normfold.run(normfold.capture(net(), X), passes(Shrink()))
    normfold.run(normfold.capture(net(), X), passes(Shrink()), verify="off")


@pytest.mark.parametrize("given", [{}, {"to": "baked"}, {"precision": "fp16"}])
def test_a_budget_that_nothing_may_spend_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="`--max-error`: no pass is approximate"):
        normfold.convert(net(), inputs=X, max_error=0.1, **given)


def test_what_the_export_bakes_is_judged_by_the_budget_too(tmp_path: Path) -> None:
    pipeline = [*parse("canonicalize"), OwnBudget()]
    made = normfold.convert(net(), passes=pipeline, inputs=X, output=tmp_path, export="onnx")
    assert made.ok
    assert [item.kind for item in made.report.all_checks()][:3] == [
        APPROXIMATIONS[0],
        "capture",
        APPROXIMATIONS[1],
    ]


def test_what_migration_changes_behind_it_is_judged_by_the_budget_too() -> None:
    made = normfold.convert(
        net(),
        passes=passes(OwnBudget()),
        inputs=X,
        quantize="int8",
        migrate=True,
        evidence="noise",
        export=(),
    )
    checks = [item.check for item in made.report.passes if item.check is not None]
    assert {check.kind for check in checks} == set(APPROXIMATIONS)
    assert all(check.ok for check in checks)


def test_what_is_in_front_of_it_stays_exact() -> None:
    _, report = normfold.run(normfold.capture(net(), X), passes(OwnBudget()), verify="each")
    kinds = [item.check.kind for item in report.passes if item.check is not None]
    unbaked, baked = APPROXIMATIONS
    assert kinds == ["algebra", "algebra", unbaked, unbaked, baked]


@pytest.mark.parametrize(("limit", "code"), [(0.05, True), (0.001, False)])
def test_its_files_are_judged_by_the_same(limit: float, code: bool, tmp_path: Path) -> None:
    result = normfold.convert(
        net(), passes=passes(Shrink()), inputs=X, output=tmp_path, export="onnx", max_error=limit
    )
    assert result.ok == code
    assert bool(list(tmp_path.glob("*.onnx"))) == code
    if code:
        worst = next(
            check.worst
            for check in result.report.checks
            if isinstance(check, Check) and check.kind == "onnxruntime-all"
        )
        assert worst is not None
        assert worst.tolerance == limit
        assert 1e-3 < worst.error < limit
