"""The frontier against all choices, written out."""

from __future__ import annotations

import itertools
import random

import pytest

from normfold.ranges import allocate
from normfold.ranges.allocate import Option, frontier, within


def layers(count: int, formats: int, seed: int) -> list[list[Option]]:
    draw = random.Random(seed)
    return [
        [Option(str(at), draw.randint(1, 30), draw.random()) for at in range(formats)]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_against_every_choice(seed: int) -> None:
    options = layers(6, 3, seed)
    found = frontier(options)
    everything = [
        (sum(o.cost for o in picks), sum(o.harm for o in picks))
        for picks in itertools.product(*options)
    ]
    for budget in range(6, 180, 7):
        best = min((harm for cost, harm in everything if cost <= budget), default=None)
        chosen = within(found, budget)
        assert (chosen is None) == (best is None)
        if chosen is not None:
            assert chosen.harm == pytest.approx(best)
            assert chosen.cost <= budget
            picked = [options[at][int(name)] for at, name in enumerate(chosen.picks)]
            assert sum(o.cost for o in picks_of(picked)) == pytest.approx(chosen.cost)


def picks_of(options: list[Option]) -> list[Option]:
    return options


def test_nothing_on_the_frontier_is_dominated() -> None:
    found = frontier(layers(8, 4, 9))
    for one, other in itertools.pairwise(found):
        assert one.cost < other.cost
        assert one.harm > other.harm


def test_bins_stay_close(monkeypatch: pytest.MonkeyPatch) -> None:
    options = layers(12, 3, 5)
    exact = frontier(options)
    monkeypatch.setattr(allocate, "CAP", 200)
    rough = frontier(options)
    assert len(rough) <= 3 * 201
    for budget in (120, 180, 240):
        best, near = within(exact, budget), within(rough, budget)
        assert best is not None
        assert near is not None
        assert near.cost <= budget
        assert best.harm <= near.harm <= 1.1 * best.harm


def test_a_budget_below_the_cheapest() -> None:
    found = frontier([[Option("a", 5.0, 0.1)], [Option("a", 5.0, 0.1), Option("b", 2.0, 0.5)]])
    assert within(found, 6.9) is None
    chosen = within(found, 7.0)
    assert chosen is not None
    assert chosen.picks == ("a", "b")
