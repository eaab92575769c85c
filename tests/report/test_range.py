"""The range as a line of the verdict: of half precision what is held, what is not, and what overflows."""

from __future__ import annotations

import io
import json
from functools import partial

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import normfold
from normfold.report import Report
from normfold.report.range import Island, Range
from normfold.report.text import print_report
from normfold.targets import typed


class Net(nn.Module):
    """The squares that its norm sums are above what float16 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.norm(self.a(x) * 500))
        return y


def converted(**options: object) -> Report:
    torch.manual_seed(0)
    given: dict[str, object] = {"inputs": (torch.randn(2, 8),), "precision": "fp16", "export": ()}
    return normfold.convert(Net().eval(), **(given | options)).report  # type: ignore[arg-type]


def text(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    return out.getvalue().splitlines()


def test_half_precision_that_holds() -> None:
    report = converted()
    (found,) = report.ranges
    assert (found.type, found.state, found.target) == ("float16", "ok", "")
    assert found.limit == 65504
    assert 100 < found.largest < found.limit / 4
    assert "test_range.py" in found.at
    (island,) = found.islands
    assert (island.site, island.op) == ("norm", "layer_norm")
    assert island.why.startswith("squares up to")
    assert (report.ok, report.lowered) == (True, "float16")
    lines = text(report)
    place = next(at for at, line in enumerate(lines) if line.startswith("range "))
    assert lines[place].startswith("range     float16: ok; values up to ")
    assert any(line.startswith("norm ") and "squares up to" in line for line in lines[place:])
    assert json.loads(report.to_json())["ranges"][0]["islands"][0]["site"] == "norm"


def test_half_precision_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed, "lower", partial(typed.lower, islands=False))
    report = converted()
    (found,) = report.ranges
    assert (found.state, found.islands) == ("failed", ())
    assert found.at.startswith("norm, ")
    assert (report.ok, report.exit_code) == (False, 1)
    assert found.largest > found.limit
    assert report.failures()[0].startswith("range: float16: FAILED; a value overflows at norm,")
    assert "range     float16: FAILED; a value overflows at norm," in "\n".join(text(report))


def test_a_sum_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the result of an op is no number, the first such op is named."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x) * 1e3 * 1e3)
            return y

    monkeypatch.setattr(typed, "lower", partial(typed.lower, islands=False))
    report = normfold.convert(
        Wide().eval(), inputs=(torch.randn(2, 8),), precision="fp16", export=()
    ).report
    (found,) = report.ranges
    assert found.state == "failed"
    assert "self.b(self.a(x) * 1e3 * 1e3)" in found.at
    assert json.loads(report.to_json())["ranges"][0]["largest"] is None
    assert report.exit_code == 1


def test_without_a_verdict_it_is_not_judged() -> None:
    report = converted(verify="off")
    assert [found.state for found in report.ranges] == ["not judged"]
    assert report.exit_code == 0


def test_a_network_in_its_own_types_has_none() -> None:
    report = converted(precision=None)
    assert (report.ranges, report.lowered) == ((), "")
    assert not any(line.startswith("range ") for line in text(report))


def test_lines_are_80_columns_wide() -> None:
    place = "blocks.11.attention.projection, " + "a/long/path" * 12
    found = (
        Range("float16", "ok", 12.5, 65504.0, place, islands=(Island("a", "b", "c", "d"),)),
        Range("uint8 x int8", "not judged", 64770, 32767, place, "ort-x86", why="word " * 40),
    )
    lines = text(Report(ranges=found))
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("range ") for line in lines) == 2
