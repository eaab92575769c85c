"""bench: the statistics on made-up times, and the order of the runs. Nothing here depends on a real clock."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from normfold.errors import UsageError
from normfold.judge.bench import measure
from normfold.judge.bench_inputs import Inputs, values_for
from normfold.judge.pairs import Pair
from normfold.report import Timing
from normfold.report.timing import duration, figures, median_interval
from normfold.targets.feeds import Signature
from tests.timings import timing


class Lab:
    """Networks that take the time they are told to, on a clock that only they move."""

    def __init__(self, a: Callable[[], float], b: Callable[[], float]) -> None:
        self.now, self.order, self.waited = 0.0, "", 0
        self.pair = Pair(
            lambda: self._run("a", a),
            lambda: self._run("b", b),
            ("one", "two"),
            "lab",
            "x:1:f32",
            None,
            self._wait,
        )

    def clock(self) -> float:
        return self.now

    def _run(self, side: str, take: Callable[[], float]) -> None:
        self.order += side
        self.now += take()

    def _wait(self) -> None:
        self.waited += 1


@pytest.mark.parametrize("n", [6, 7, 20, 41, 100, 500])
def test_the_interval_is_the_narrowest_of_95_percent(n: int) -> None:
    """Ranks k and n + 1 - k: with the next narrower pair the confidence would be below 95 %."""
    low, high = median_interval(random.Random(n).sample(range(1, n + 1), n))
    k = round(low)
    assert (low, high) == (k, n + 1 - k)

    def confidence(rank: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(rank)) / float(2**n)

    assert confidence(k) >= 0.95 > confidence(k + 1)


def test_five_values_have_no_such_interval() -> None:
    with pytest.raises(ValueError, match="5 values"):
        median_interval([1.0] * 5)


def samples(ratio: float, seed: int, rounds: int = 40) -> tuple[list[float], list[float]]:
    """Times with 5 % noise on each side, outliers, and a load that comes and goes for both."""
    draw = random.Random(seed)
    a: list[float] = []
    b: list[float] = []
    for index in range(rounds):
        load = 1.5 if index % 10 > 6 else 1.0
        for times, mean in ((a, 1.0), (b, ratio)):
            outlier = 4.0 if draw.random() < 0.05 else 1.0
            times.append(mean * load * outlier * math.exp(draw.gauss(0, 0.05)))
    return a, b


def judged(ratio: float, seed: int) -> Timing:
    found = figures(*samples(ratio, seed))
    return replace(timing(1, 1, 1), ratio=found.ratio, interval=found.interval)


def test_a_real_difference_is_found() -> None:
    for seed in range(20):
        faster, slower = judged(0.9, seed), judged(1.1, seed)
        assert faster.faster
        assert "B is " in faster.verdict
        assert " % faster (95 % interval " in faster.verdict
        assert not slower.faster
        assert " % slower (95 % interval " in slower.verdict


def test_no_difference_is_not_claimed() -> None:
    """At most one in twenty, as the 95 % promise; and never by the medians alone."""
    verdicts = [judged(1.0, seed).verdict for seed in range(400)]
    claims = [text for text in verdicts if not text.startswith("no difference")]
    assert len(claims) <= 0.06 * len(verdicts)
    assert "no difference" in timing(0.9, 0.8, 1.0).verdict
    assert not timing(0.9, 0.8, 1.0).faster
    assert not timing(1.1, 1.0, 1.2).verdict.startswith("B is")


def test_figures_pair_the_times_of_a_round() -> None:
    """A round that is slow for both says nothing about the ratio."""
    found = figures([1, 1, 1, 10, 10, 10, 10], [2, 2, 2, 20, 20, 20, 30])
    assert (found.a_seconds, found.b_seconds, found.ratio) == (10, 20, 2)
    assert found.quartiles == (2, 2)
    assert found.interval == (2, 3)


def test_the_verdict_in_words() -> None:
    assert timing(0.969, 0.948, 0.99).verdict == "B is 3.1 % faster (95 % interval 1.0 to 5.2 %)"
    assert timing(1.25, 1.2, 1.5).verdict == "B is 25.0 % slower (95 % interval 20.0 to 50.0 %)"
    expected = "no difference that this machine can show (B/A 0.998, 95 % interval 0.991 to 1.004)"
    assert timing(0.998, 0.991, 1.004).verdict == expected
    assert [duration(s) for s in (2.5, 0.0123456, 4.2e-5)] == ["2.5 s", "12.35 ms", "42 us"]


def test_who_goes_first_changes_and_each_round_is_a_palindrome() -> None:
    lab = Lab(lambda: 0.01, lambda: 0.02)
    found = measure(lab.pair, 6, 0.0, clock=lab.clock)
    assert found.calls == 1  # one run is already long enough to measure
    warm_up, rounds = lab.order[:-24], lab.order[-24:]
    assert rounds == "abbabaab" * 3
    assert warm_up == "ab" * (len(warm_up) // 2)
    assert len(warm_up) >= 6
    assert found.rounds == 6
    assert [found.a_seconds, found.b_seconds, found.ratio] == pytest.approx([0.01, 0.02, 2])
    assert lab.waited == 2 * len(lab.order)  # before and after each, as a GPU needs it
    assert (found.a, found.b, found.runtime) == ("one", "two", "lab")
    assert found.seconds == pytest.approx(lab.now)


def test_short_runs_are_timed_in_bunches() -> None:
    lab = Lab(lambda: 1 / 8192, lambda: 1 / 4096)
    found = measure(lab.pair, 6, 0.0, clock=lab.clock)
    assert found.calls == 41  # 5 ms of the faster one
    assert lab.order.endswith("a" * 41 + "b" * 82 + "a" * 41 + "b" * 41 + "a" * 82 + "b" * 41)
    assert found.a_seconds == 1 / 8192


def test_a_steady_drift_is_no_difference() -> None:
    """A machine that gets slower with every run: the same network twice has the ratio 1."""
    runs = 0

    def take() -> float:
        nonlocal runs
        runs += 1
        return 0.01 * (1 + 0.01 * runs)

    lab = Lab(take, take)
    found = measure(lab.pair, 10, 0.0, clock=lab.clock)
    assert found.ratio == pytest.approx(1, abs=1e-12)
    assert found.verdict.startswith("no difference")


def test_rounds_and_seconds_are_both_met() -> None:
    def rounds(least: int, seconds: float) -> int:
        lab = Lab(lambda: 1 / 64, lambda: 1 / 32)
        return measure(lab.pair, least, seconds, clock=lab.clock).rounds

    assert rounds(6, 0.0) == 6
    assert rounds(30, 0.1) == 30
    assert rounds(6, 1.5) == 16  # of 6/64 s each


def test_the_garbage_collector_rests_meanwhile_and_no_longer() -> None:
    seen: list[bool] = []

    def looks() -> float:
        seen.append(gc.isenabled())
        return 0.1

    lab = Lab(looks, lambda: 0.1)
    measure(lab.pair, 6, 0.0, clock=lab.clock)
    assert not any(seen[-12:])
    assert gc.isenabled()

    def fails() -> float:
        if not gc.isenabled():
            raise RuntimeError
        return 0.1

    lab = Lab(fails, lambda: 0.1)
    with pytest.raises(RuntimeError):
        measure(lab.pair, 6, 0.0, clock=lab.clock)
    assert gc.isenabled()


DECODER: Signature = [
    ("ids", ("batch", "length"), "tensor(int64)"),
    ("mask", ("batch", "past + length"), "tensor(int64)"),
    ("key", ("batch", 2, "past", 4), "tensor(float)"),
    ("value", ("batch", 2, "past", 4), "tensor(float)"),
]


def test_free_sizes_of_one_name_are_given_once() -> None:
    values = values_for(DECODER, Inputs(("ids:3x1", "key:3x2x8x4"), batch=3))
    assert [tuple(value.shape) for value in values] == [(3, 1), (3, 9), (3, 2, 8, 4), (3, 2, 8, 4)]


def test_free_sizes_that_are_not_given_are_all_said() -> None:
    with pytest.raises(UsageError, match="free sizes besides the batch") as caught:
        values_for(DECODER, Inputs())
    hint = str(caught.value.hint)
    assert "`--input ids:1x16 --input key:1x2x16x4`" in hint
    texts = hint.split("`")[1].replace("--input ", "").split()
    assert values_for(DECODER, Inputs(tuple(texts)))[1].shape == (1, 32)
