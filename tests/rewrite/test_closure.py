"""The minimum cut against trying every set: the weight is the greatest, and the set the smallest of the best."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.rewrite.closure import Closure

NAMES = "abcdef"
Pair = tuple[str, str]


class Spelled(Closure):
    """A closure that also remembers what it was told, to be tried out."""

    def __init__(self) -> None:
        super().__init__()
        self.gains: list[tuple[str, float]] = []
        self.implied: list[Pair] = []
        self.forbidden: list[str] = []
        self.prices: list[tuple[str, str, float]] = []

    def told(self) -> Closure:
        """Everything, told to the closure."""
        for choice, weight in self.gains:
            self.gain(choice, weight)
        for one, other in self.implied:
            self.imply(one, other)
        for choice in self.forbidden:
            self.forbid(choice)
        for one, other, weight in self.prices:
            self.price(one, other, weight)
        return self

    def worth(self, chosen: set[str]) -> float | None:
        """Total weight of a set; None if it is not allowed."""
        if any(one in chosen and other not in chosen for one, other in self.implied):
            return None
        if chosen & set(self.forbidden):
            return None
        total = sum(weight for choice, weight in self.gains if choice in chosen)
        return total - sum(
            w for one, other, w in self.prices if one in chosen and other not in chosen
        )

    def best(self) -> tuple[float, set[str]]:
        """The greatest weight, and the intersection of all sets that have it (which is one of them)."""
        found: list[tuple[float, set[str]]] = []
        for bits in product((False, True), repeat=len(NAMES)):
            chosen = {name for name, bit in zip(NAMES, bits, strict=True) if bit}
            if (worth := self.worth(chosen)) is not None:
                found.append((worth, chosen))
        top = max(worth for worth, _ in found)
        return top, set.intersection(*(chosen for worth, chosen in found if worth == top))


@st.composite
def systems(draw: st.DrawFn) -> Spelled:
    """Small systems; weights are multiples of 1/4, so that sums are exact and ties happen."""
    name = st.sampled_from(NAMES)
    weight = st.integers(1, 12).map(lambda quarters: quarters / 4)
    system = Spelled()
    system.gains = draw(st.lists(st.tuples(name, weight), max_size=6))
    system.gains += [(one, -w) for one, w in draw(st.lists(st.tuples(name, weight), max_size=4))]
    pairs = st.tuples(name, name).filter(lambda pair: pair[0] != pair[1])
    system.implied = draw(st.lists(pairs, max_size=8))
    system.forbidden = draw(st.lists(name, max_size=2))
    priced = draw(st.lists(st.tuples(pairs, weight), max_size=6))
    system.prices = [(*pair, w) for pair, w in priced]
    return system


@settings(max_examples=150)
@given(systems())
def test_the_cut_is_the_best_and_the_smallest(system: Spelled) -> None:
    chosen = system.told().solve()
    worth, smallest = system.best()
    assert system.worth(chosen) == worth
    assert chosen == smallest


def test_nothing_is_chosen_for_nothing() -> None:
    closure = Closure()
    closure.gain("a", 1.0)
    closure.price("a", "b", 1.0)
    closure.forbid("b")
    assert closure.solve() == set()


def test_a_circle_is_chosen_whole() -> None:
    closure = Closure()
    closure.imply("a", "b")
    closure.imply("b", "a")
    closure.gain("a", 2.0)
    closure.gain("b", -1.0)
    assert closure.solve() == {"a", "b"}


def test_large_and_small_weights_together() -> None:
    """Elements of an image beside those of a token: a small gain is not lost in the rounding of a large one."""
    closure = Closure()
    closure.gain("big", 1e8)
    closure.price("big", "small", 0.5)
    closure.gain("small", -0.25)
    closure.gain("alone", 0.5)
    assert closure.solve() == {"big", "small", "alone"}
