"""How long two networks took on one machine, and what may be said of it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FEWEST_ROUNDS = (
    6  # of five rounds even the smallest and the largest enclose a median only 94 % of the time
)


@dataclass(frozen=True)
class Timing:
    """Two networks timed in turn: seconds of one forward pass, medians over the rounds.

    ``ratio`` is the median over the rounds of B's time over A's in the same round, ``quartiles`` are those of
    the rounds' ratios; ``interval`` holds the true median ratio with 95 % confidence, whatever the
    distribution (order statistics). A round is the order ``A B B A`` or ``B A A B``, ``calls`` passes at each
    letter. ``threads`` is None where the runtime chose.
    """

    a: str
    b: str
    runtime: str
    inputs: str
    rounds: int
    calls: int
    a_seconds: float
    b_seconds: float
    ratio: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    threads: int | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def faster(self) -> bool:
        """True if B is faster and this machine can show it: the interval lies wholly below 1."""
        return self.interval[1] < 1

    @property
    def verdict(self) -> str:
        """One line in words; no difference is claimed where the interval holds 1."""
        low, high = self.interval
        if self.faster:
            word, share, ends = "faster", 1 - self.ratio, (1 - high, 1 - low)
        elif low > 1:
            word, share, ends = "slower", self.ratio - 1, (low - 1, high - 1)
        else:
            return (
                "no difference that this machine can show "
                f"(B/A {self.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f})"
            )
        spread = f"95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"
        return f"B is {100 * share:.1f} % {word} ({spread})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the derived ``faster`` and ``verdict``."""
        return {**dataclasses.asdict(self), "faster": self.faster, "verdict": self.verdict}


@dataclass(frozen=True)
class Figures:
    """What the rounds' times amount to, in the fields of a `Timing`."""

    a_seconds: float
    b_seconds: float
    ratio: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]


def figures(a: Sequence[float], b: Sequence[float]) -> Figures:
    """Medians and spread of paired times: ``a[i]`` and ``b[i]`` in seconds are of the same round.

    Raises:
        ValueError: fewer than 6 rounds.
    """
    ratios = [after / before for before, after in zip(a, b, strict=True)]
    first, middle, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return Figures(
        statistics.median(a),
        statistics.median(b),
        middle,
        (first, third),
        median_interval(ratios),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median of what ``values`` are drawn from, at 95 % or a little more.

    The k-th smallest and the k-th largest value: the median lies outside when fewer than k of n values fall on
    one side of it, with the probability of fewer than k heads in n tosses on each side (Conover, Practical
    Nonparametric Statistics, 3.2).

    Raises:
        ValueError: fewer than 6 values.
    """
    n = len(values)
    if n < FEWEST_ROUNDS:
        raise ValueError(f"{n} values have no 95 % interval of their median")
    k, ways = 0, 0
    while 40 * (ways + math.comb(n, k)) <= 2**n:  # 2.5 % on each side
        ways += math.comb(n, k)
        k += 1
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def duration(seconds: float) -> str:
    """Four digits and a unit: ``12.35 ms``."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.4g} {name}"
    return f"{seconds * 1e6:.4g} us"
