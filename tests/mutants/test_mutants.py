"""A few dozen mutants in the default suite; `make mutants` runs thousands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.mutants.__main__ import counts, is_unseen, summary
from tests.mutants.judge import Bench, Row, largest, norm


@pytest.fixture(scope="module")
def repvgg(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("repvgg", tmp_path_factory.mktemp("repvgg"))


@pytest.fixture(scope="module")
def layerscale(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("layerscale", tmp_path_factory.mktemp("layerscale"))


@pytest.mark.parametrize("level", ["un-baked", "baked", "file"])
def test_plain_faults_are_caught(repvgg: Bench, level: str) -> None:
    rows = [row.to_dict() for row in repvgg.rows(level, 12)]
    caught, plain, _ = counts(rows, None)
    assert plain >= 8
    assert caught == plain, rows


@pytest.mark.slow
def test_the_certificate_sees_what_float32_does_not(layerscale: Bench) -> None:
    rows = [row.to_dict() for row in layerscale.rows("un-baked", 24)]
    unseen = [row for row in rows if is_unseen(row)]
    assert len(unseen) >= 5
    assert all(row["caught"]["certificate"] for row in unseen)


def test_untouched_networks_pass(repvgg: Bench) -> None:
    ((verdicts, alarms),) = repvgg.alarms([1])
    assert verdicts == 4
    assert not alarms


def test_a_blind_verdict_is_found_out(repvgg: Bench, tmp_path: Path) -> None:
    """What passes everything: the harness counts what it misses, and ends with 1."""
    made = replace(repvgg.made, judge=replace(repvgg.made.judge, half_budget=1e9))
    before, repvgg.made = repvgg.made, made
    try:
        rows = [row.to_dict() for row in repvgg.rows("file", 12)]
    finally:
        repvgg.made = before
    caught, plain, _ = counts(rows, "runtime")
    assert caught < plain
    part = {"network": "repvgg", "rows": rows, "alarms": [], "verdicts": 0, "error": ""}
    assert summary([part]) == 1


def test_the_yardstick() -> None:
    one = torch.tensor([1.0, -4.0])
    assert largest([one], [one + torch.tensor([0.0, 1.0])]) == 0.25
    assert largest([one], [one * torch.nan]) == float("inf")
    assert largest([one], [one[:1]]) == float("inf")
    assert norm([one], [2 * one]) == 1.0
    assert norm([one], [one * torch.inf]) == float("inf")


def _rows() -> Iterator[Row]:
    yield Row("n", "un-baked", "graph", "a", 1e-9, {"certificate": True}, {"certificate": True})
    yield Row("n", "un-baked", "graph", "b", 1.0, {"certificate": True}, {"certificate": False})
    yield Row("n", "un-baked", "graph", "c", 0.0, {"certificate": False}, {"certificate": False})
    yield Row("n", "un-baked", "graph", "d", refused="it does not run")


def test_counts() -> None:
    rows = [row.to_dict() for row in _rows()]
    assert counts(rows, None) == counts(rows, "certificate") == (1, 2, 1)
    assert [is_unseen(row) for row in rows] == [True, False, False, False]
