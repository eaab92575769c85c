"""The format of each layer: the frontier of cost against harm, by dynamic programming over labels.

Harms are taken as additive (Cai et al. 2020, section 3.3, arXiv 2001.00281), so that the best choice for every
cost is a multiple-choice knapsack: layer by layer, every label (cost, harm) is extended by every format of the
layer, and a label that another one beats in both is dropped. Exact while there are fewer labels than `CAP`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

CAP = 20_000  # labels; above, the costs are put into as many bins


@dataclass(frozen=True)
class Option:
    """One format of one layer (or of layers that must share it): its name, its cost, and the harm it does."""

    name: str
    cost: float
    harm: float


@dataclass(frozen=True)
class Choice:
    """One point of the frontier: the format of every layer, in order, and their summed cost and harm."""

    cost: float
    harm: float
    picks: tuple[str, ...]


@dataclass(frozen=True)
class _Label:
    cost: float
    harm: float
    pick: str
    before: _Label | None


def frontier(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """Every choice that no other one beats in cost and harm, cheapest first.

    Args:
        layers: for each layer its formats, at least one.
    """
    labels = [_Label(0.0, 0.0, "", None)]
    for options in layers:
        grown = [
            _Label(label.cost + option.cost, label.harm + option.harm, option.name, label)
            for label in labels
            for option in options
        ]
        labels = _undominated(grown)
        if len(labels) > CAP:
            labels = _binned(labels)
    return [Choice(label.cost, label.harm, _picks(label)) for label in labels]


def within(choices: Sequence[Choice], budget: float) -> Choice | None:
    """The least harmful choice that costs at most so much; None if even the cheapest costs more."""
    at = bisect_right([choice.cost for choice in choices], budget * (1 + 1e-9))
    return choices[at - 1] if at else None


def _undominated(labels: list[_Label]) -> list[_Label]:
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda item: (item.cost, item.harm)):
        if not kept or label.harm < kept[-1].harm:
            kept.append(label)
    return kept


def _binned(labels: list[_Label]) -> list[_Label]:
    """The least harmful label of every bin of the costs; the cheapest one always stays."""
    low, high = labels[0].cost, labels[-1].cost
    best: dict[int, _Label] = {}
    for label in labels:  # of falling harm
        best[int((label.cost - low) / (high - low) * CAP)] = label
    return _undominated([labels[0], *best.values()])


def _picks(label: _Label) -> tuple[str, ...]:
    found = []
    while label.before is not None:
        found.append(label.pick)
        label = label.before
    return tuple(reversed(found))
