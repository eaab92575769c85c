"""What a network is tried on: inputs made for it, other sizes that it takes, and sizes of 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normfold.errors import UsageError, last_line
from normfold.ir import Graph
from normfold.ir.evaluation import widen
from normfold.ir.randomness import draws
from normfold.ir.sizes import Sizes
from normfold.judge.comparison import largest_error
from normfold.judge.inputs import (
    Case,
    asked_sizes,
    cases,
    is_single,
    other_sizes,
    single_sizes,
)
from normfold.judge.runs import original_of, run

_ROUGH = 0.01  # what no rounding does between two runs of one network


def trials(
    graph: Graph, seed: int, samples: list[tuple[Any, ...]] | None, tries: Sequence[str]
) -> tuple[list[Case], list[str]]:
    """The cases of a verdict, and notes on what could not be tried.

    Raises:
        UsageError: a size in ``tries`` that the network does not take.
    """
    notes: list[str] = []
    others = _asked(graph, tries, seed) if tries else _another_size(graph, seed, notes)
    singles, left_out = _single_sizes(graph, seed, notes)
    own = [case for case in cases(graph, seed, samples) if not is_single(graph, case, left_out)]
    return [*own, *others, *singles], notes


def refusal(graph: Graph, case: Case) -> str:
    """What the original says to inputs that it does not take; nothing where it runs."""
    try:
        run(graph, original_of(graph), [case])
    except Exception as error:  # anything that a network can raise
        return last_line(error)
    return ""


def _asked(graph: Graph, tries: Sequence[str], seed: int) -> list[Case]:
    found = asked_sizes(graph, tries, seed)
    for case in found:
        failure = refusal(graph, case)
        if failure:
            raise UsageError(f"`--try {case.name}`: the network refuses this size", found=failure)
    return found


def _another_size(graph: Graph, seed: int, notes: list[str]) -> list[Case]:
    """The first of the other sizes that the original accepts; a note where it accepts none."""
    refused = []
    for case in other_sizes(graph, seed):
        failure = refusal(graph, case)
        if not failure:
            return [case]
        refused.append(f"{case.name} ({failure})")
    free = Sizes(graph).free
    if free:
        why = f"it refuses {refused[0]}" if refused else "none was found that it takes"
        notes.append(
            f"judged at the sizes of the example only, though {', '.join(f'`{x}`' for x in free)} may vary: "
            f"{why}; `--try` gives others"
        )
    return []


def _single_sizes(graph: Graph, seed: int, notes: list[str]) -> tuple[list[Case], set[Any]]:
    """Cases of free sizes of 1, where the network takes them; and the sizes that must not be 1, with a note.

    Those are where the network is another function at 1 than what was captured.
    """
    found: list[Case] = []
    others: set[Any] = set()
    if any(map(draws, graph.nodes)):  # no two calls are comparable
        return found, others
    sizes = Sizes(graph)
    for symbol, case in single_sizes(graph, seed):
        try:
            (own,) = run(graph, original_of(graph), [case])
        except Exception:  # the network takes no size of 1 there
            continue
        try:
            (captured,) = run(graph, graph.module, [case])
        except Exception:  # anything that a graph can raise
            captured = []
        if [x.shape for x in own] == [x.shape for x in captured] and all(
            largest_error(widen(x), y)[0] < _ROUGH for x, y in zip(own, captured, strict=True)
        ):
            found.append(case)
        else:
            others.add(symbol)
            axis = sizes.axes_of(symbol)[0]
            hint = "use `--batch static` for a file of one size" if symbol == sizes.batch else ""
            notes.append(
                f"`{axis}` of 1: the network does something else there than what was captured at larger "
                f"sizes, and than the files; {hint or 'a file for that needs a fixed size there'}"
            )
    return found, others
