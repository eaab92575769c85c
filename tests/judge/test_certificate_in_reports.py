"""The certificate beside the float64 algebra, in reports and in what decides."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import normfold
from normfold.rewrite import parse
from normfold.rewrite.rewriter import Rewriter
from tests.nets import Compose, perturb

PIPELINE = "canonicalize,fold-affine{split-norms=true},center-stream,restore,bake"


def graph() -> Any:
    torch.manual_seed(0)
    module = Compose(
        lambda m, x: m.head(m.last((y := m.stem(x)) + m.inner(m.norm(y)))),
        stem=nn.Linear(5, 8),
        norm=nn.LayerNorm(8),
        inner=nn.Linear(8, 8),
        last=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    return normfold.capture(perturb(module), (torch.randn(2, 4, 5),))


@pytest.mark.parametrize(
    ("verify", "count"), [("each", 4), ("strict", 1), ("final", 1), ("off", 0)]
)
def test_where_it_is_made(verify: Any, count: int) -> None:
    _, report = normfold.run(graph(), PIPELINE, verify=verify)
    assert report.ok
    found = report.certificates()
    assert len(found) == count
    assert all(item.state == "certified" and len(item.primes) == 3 for item in found)
    data = json.loads(report.to_json())
    stored = [item["certificate"] for item in data["passes"] if item["certificate"] is not None]
    assert len(stored) == count
    assert all("certified over 3 primes: random weights" in item.words for item in found)


def test_a_fault_that_no_tolerance_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eps of a norm is off by 1e-9 of it: the algebra allows that, the certificate does not."""
    insert = Rewriter.insert_before

    def careless(self: Rewriter, anchor: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target is torch.ops.aten.rms_norm.default:
            args = (*args[:3], args[3] * (1 + 1e-9))
        return insert(self, anchor, target, *args, **kwargs)

    monkeypatch.setattr(Rewriter, "insert_before", careless)
    _, report = normfold.run(graph(), PIPELINE, verify="strict")
    (found,) = report.certificates()
    assert all(check.ok for check in report.all_checks()), "within every tolerance"
    assert found.state == "failed"
    assert not report.ok
    assert "certificate: output is not the original's" in report.failures()[0]


def test_a_network_without_a_meaning_for_all_of_it() -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.norm(self.conv(x))
            return y, torch.round(torch.relu(y) * 10)

    made = normfold.capture(perturb(Rounds()), (torch.randn(2, 3, 6, 6),))
    _, report = normfold.run(made, parse("canonicalize,fold-affine,restore,bake"), verify="strict")
    (found,) = report.certificates()
    assert found.ok
    assert report.ok
    assert next(output.state for output in found.outputs) == "equal"
