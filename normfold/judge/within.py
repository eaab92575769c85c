"""Results that are not exact: |y - r| / |r| of every output on typical inputs, against a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normfold.judge.comparison import Outputs, distance, parts
from normfold.judge.inputs import Case
from normfold.report import OutputCheck


def within(
    typical: Sequence[tuple[Case, Outputs]],
    results: Sequence[Outputs],
    name: Callable[[int], str],
    budget: float,
) -> list[OutputCheck]:
    """Every output of every case, by its rows where the case has some.

    Args:
        typical: cases, each with float64 outputs of the original.
        results: outputs of the result, for each case; a result of other shapes is infinitely far away.
        name: gives the name of an output by its place.
    """
    found = []
    for (case, reference), got in zip(typical, results, strict=True):
        if [x.shape for x in reference] != [x.shape for x in got]:
            found.append(OutputCheck("*", case.name, 0.0, float("inf"), budget, float("inf")))
            continue
        for place, (expected, mine) in enumerate(zip(reference, got, strict=True)):
            for label, part in parts(case, expected):
                error, absolute = distance(expected[part], mine[part])
                found.append(OutputCheck(name(place), label, 0.0, error, budget, absolute))
    return found
