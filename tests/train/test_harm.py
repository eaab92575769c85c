"""The harm of each norm, and the dial: measured with exactly those norms replaced."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from normfold.data.samples import load_data
from normfold.ir import Graph
from normfold.report.training import DialPoint, Ranking
from normfold.rewrite import parse
from normfold.rewrite.offline import fits, slots
from normfold.train.harm import Candidate, rank
from tests.train.nets import data, pair, samples


def candidates(graph: Graph) -> list[Candidate]:
    found = slots(graph)
    return [
        (slot.path, slot.source, slot.result, fit.scale, fit.shift)
        for slot, fit in zip(found, fits(graph, found, 1e-6), strict=True)
    ]


def by_hand(teacher: Graph, norms: list[str]) -> tuple[float, float]:
    """KL and agreement with these norms replaced by the pass."""
    student = teacher.copy()
    (item,) = parse(f"replace-layernorm{{norms={'|'.join(norms)}}}")
    item.run(student)
    (x,) = data().inputs(slice(None))
    with torch.no_grad():
        s, t = (torch.log_softmax(graph.module(x), -1) for graph in (student, teacher))
    agree = (s.argmax(-1) == t.argmax(-1)).double().mean()
    return float((t.exp() * (t - s)).sum(-1).mean()), 100 * float(agree)


def test_harm_and_dial_are_those_of_the_pass() -> None:
    teacher, _ = pair("affine")
    ranking = rank(teacher, candidates(teacher), data(), batch=70)
    assert {site for site, _ in ranking.harms} == {"a.norm", "b.norm", "norm"}
    harms = [harm for _, harm in ranking.harms]
    assert harms == sorted(harms)
    for site, harm in ranking.harms:
        assert harm == pytest.approx(by_hand(teacher, [site])[0], rel=1e-3)
    assert [point.count for point in ranking.dial] == [0, 1, 2, 3]
    assert ranking.dial[0].divergence == pytest.approx(0, abs=1e-9)
    assert ranking.dial[0].agreement == 100
    for point in ranking.dial[1:]:
        chosen = [site for site, _ in ranking.harms[: point.count]]
        assert point.last == chosen[-1]
        kl, agreement = by_hand(teacher, chosen)
        assert point.divergence == pytest.approx(kl, rel=1e-3)
        assert point.agreement == pytest.approx(agreement)


def test_accuracy_needs_labels() -> None:
    teacher, _ = pair("affine")
    labelled = rank(teacher, candidates(teacher), data())
    assert labelled.dial[0].accuracy == pytest.approx(90)  # one label in ten is wrong


def test_positions_that_do_not_count_are_left_out() -> None:
    teacher, _ = pair("affine")
    x, labels = samples()
    labels[::10] = -100  # the wrong ones
    ignoring = rank(teacher, candidates(teacher), load_data((x, labels), ["x"]))
    assert ignoring.dial[0].accuracy == pytest.approx(100)


def points(*accuracies: float | None) -> Ranking:
    dial = tuple(DialPoint(i, str(i), 0.1 * i, 100 - 2 * i, a) for i, a in enumerate(accuracies))
    return Ranking((("cheap", 0.1), ("dear", 0.2), ("dearest", 0.7)), dial)


def test_the_dial_stops_at_the_first_point_beyond_the_limit() -> None:
    ranking = points(80.0, 79.8, 79.0, 79.9)
    assert [ranking.within(limit) for limit in (0.0, 0.3, 1.0)] == [0, 1, 3]
    assert points(None, None, None, None).within(4) == 2  # by agreement


def test_a_loss_that_may_be_larger_than_the_limit_is_beyond_it() -> None:
    sure, unsure = (
        DialPoint(1, "a", 0.1, 99.0, 79.8, error=0.1),
        DialPoint(1, "a", 0.1, 99.0, 79.8, error=0.3),
    )
    start = DialPoint(0, "", 0.0, 100.0, 80.0, error=0.0)
    assert Ranking((("a", 0.1),), (start, sure)).within(0.5) == 1
    assert Ranking((("a", 0.1),), (start, unsure)).within(0.5) == 0
    own = DialPoint(1, "a", 0.1, 99.0, 79.8, metric=7.8, error=0.3)  # of another unit
    assert Ranking((("a", 0.1),), (replace(start, metric=8.0), own)).within(0.5) == 1


def test_the_error_of_the_agreement() -> None:
    teacher, _ = pair("affine")
    x, _ = samples()
    point = rank(teacher, candidates(teacher), load_data(x, ["x"])).dial[-1]
    _, percent = by_hand(teacher, [path for path, *_ in candidates(teacher)])
    assert 0 < percent < 100
    assert point.error == pytest.approx(math.sqrt(percent * (100 - percent) / len(x)))


def test_the_error_of_the_accuracy() -> None:
    """Of paired answers: it counts what one alone has right."""
    teacher, _ = pair("affine")
    x, labels = samples()
    student = teacher.copy()
    (item,) = parse("replace-layernorm")
    item.run(student)
    with torch.no_grad():
        rights = [(graph(x).argmax(-1) == labels).double() for graph in (teacher, student)]
    gains = 100 * (rights[0] - rights[1])
    assert bool(gains.any())
    point = rank(teacher, candidates(teacher), load_data((x, labels), ["x"])).dial[-1]
    assert point.error == pytest.approx(float(gains.std()) / math.sqrt(len(x)), rel=0.02)


def test_the_few_that_hold_half_of_the_harm() -> None:
    assert points(1.0, 1.0, 1.0, 1.0).worst() == ["dearest"]
    assert points(1.0).worst(0.8) == ["dearest", "dear"]
