"""What a network is tried on: inputs made for it, other sizes that it takes, and sizes of 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from normfold.errors import UsageError, last_line
from normfold.ir import Graph
from normfold.ir.evaluation import widen
from normfold.ir.randomness import draws
from normfold.ir.sizes import Sizes
from normfold.judge.comparison import Outputs, largest_error
from normfold.judge.inputs import (
    KINDS,
    Case,
    asked_sizes,
    cases,
    is_single,
    other_sizes,
    own_batch,
    single_sizes,
)
from normfold.judge.runs import original_of, run, run_float64
from normfold.ops.lookups import table_rows

_ROUGH = 0.01  # what no rounding does between two runs of one network


@dataclass
class Trials:
    """The cases of a verdict.

    Attributes:
        notes: what could not be tried.
        own, reference: outputs of the original that were needed to find the cases, by the `id` of the case (other
            cases may have its name), in its own types and in float64.
    """

    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own: dict[int, Outputs] = field(default_factory=dict)
    reference: dict[int, Outputs] = field(default_factory=dict)

    def add(self, case: Case, own: Outputs, reference: Outputs | None = None) -> None:
        self.cases.append(case)
        self.own[id(case)] = own
        if reference is not None:
            self.reference[id(case)] = reference


def trials(
    graph: Graph, seed: int, samples: list[tuple[Any, ...]] | None, tries: Sequence[str]
) -> Trials:
    """The cases of a verdict, and notes on what could not be tried.

    Raises:
        UsageError: a size in ``tries`` that the network does not take.
    """
    found = Trials()
    if tries:
        _asked(graph, tries, seed, found)
    else:
        _another_size(graph, seed, found)
    many = own_batch(graph, seed) if samples is None and not tries else None
    tried = None if many is None else _tried(graph, many)
    if many is not None and not isinstance(tried, str) and tried is not None:
        found.add(many, tried)
    left_out, alone = _single_sizes(graph, seed, found)
    kinds = [kind for kind in KINDS if kind != "random" or not alone]
    own = cases(graph, seed, samples, kinds)
    if alone and own[0].rows is None:  # no batch of so many rows: each kind is a case
        own = cases(graph, seed, samples)
    found.cases[:0] = [case for case in own if not is_single(graph, case, left_out)]
    found.notes += _unread(graph, found.cases)
    return found


def _unread(graph: Graph, of: Sequence[Case]) -> Iterator[str]:
    """Of inputs that are looked up in tables: how many rows are read."""
    names = graph.input_names
    for place, rows in enumerate(table_rows(graph)):
        if rows:
            ids = torch.cat([case.leaves[place].reshape(-1) for case in of]).unique()
            if len(ids) < rows:
                yield f"`{names[place]}` reads {len(ids)} of the {rows} rows of its table; others are not judged"


def refusal(graph: Graph, case: Case) -> str:
    """What the original says to inputs that it does not take; nothing where it runs."""
    tried = _tried(graph, case)
    return tried if isinstance(tried, str) else ""


def _tried(graph: Graph, case: Case) -> Outputs | str:
    """What the original makes of inputs, or what it says where it does not take them."""
    try:
        return run(graph, original_of(graph), [case])[0]
    except Exception as error:  # anything that a network can raise
        return last_line(error) or type(error).__name__


def _tried_elsewhere(graph: Graph, case: Case) -> Outputs | str:
    """The same at another size, of which outputs without elements say nothing; float64 refuses to make some."""
    tried = _tried(graph, case)
    if isinstance(tried, str) or any(x.numel() for x in tried):
        return tried
    return "no output has an element there"


def _asked(graph: Graph, tries: Sequence[str], seed: int, found: Trials) -> None:
    for case in asked_sizes(graph, tries, seed):
        tried = _tried_elsewhere(graph, case)
        if isinstance(tried, str):
            raise UsageError(f"`--try {case.name}`: the network refuses this size", found=tried)
        found.add(case, tried)


def _another_size(graph: Graph, seed: int, found: Trials) -> None:
    """The first of the other sizes that the original accepts; a note where it accepts none."""
    refused = []
    for case in other_sizes(graph, seed):
        tried = _tried_elsewhere(graph, case)
        if not isinstance(tried, str):
            found.add(case, tried)
            return
        refused.append(f"{case.name} ({tried})")
    free = Sizes(graph).free
    if free:
        why = f"it refuses {refused[0]}" if refused else "none was found that it takes"
        found.notes.append(
            f"judged at the sizes of the example only, though {', '.join(f'`{x}`' for x in free)} may vary: "
            f"{why}; `--try` gives others"
        )


def _single_sizes(graph: Graph, seed: int, found: Trials) -> tuple[set[Any], bool]:
    """Cases of free sizes of 1, where the network takes them.

    Returns:
        The sizes that must not be 1, each with a note: the network does something else there than what was
        captured; and whether the batch of 1 is one of random numbers, which stands for the row of them.
    """
    others: set[Any] = set()
    alone = False
    if any(map(draws, graph.nodes)):  # no two calls are comparable
        return others, alone
    sizes = Sizes(graph)
    for symbol, case in single_sizes(graph, seed):
        own = _tried_elsewhere(graph, case)
        if isinstance(own, str):  # the network takes no size of 1 there
            continue
        reference = _computed(lambda case: run_float64(graph, [case])[0], case)
        # integers that rounding decides are another answer in float64, and half precision is far from it
        if _is_near(reference, own) or _is_near(
            _computed(lambda case: run(graph, graph.module, [case])[0], case), own
        ):
            if symbol == sizes.batch and all(map(_is_noise, case.leaves)):
                case, alone = replace(case, usual=True), True
            found.add(case, own, reference)
        elif _is_captured(graph, seed):
            others.add(symbol)
            axis = sizes.axes_of(symbol)[0]
            hint = "use `--batch static` for a file of one size" if symbol == sizes.batch else ""
            found.notes.append(
                f"`{axis}` of 1: the network does something else there than what was captured at larger "
                f"sizes, and than the files; {hint or 'a file for that needs a fixed size there'}"
            )
    return others, alone


def _is_captured(graph: Graph, seed: int) -> bool:
    """False where the captured graph is not the network at larger sizes either: a size of 1 tells nothing then."""
    case = cases(graph, seed)[0]
    own = _tried(graph, case)
    computed = _computed(lambda case: run_float64(graph, [case])[0], case)
    return isinstance(own, str) or _is_near(computed, own)


def _computed(call: Callable[[Case], Outputs], case: Case) -> Outputs | None:
    try:
        return call(case)
    except Exception:  # anything that a graph can raise
        return None


def _is_near(computed: Outputs | None, own: Outputs) -> bool:
    if computed is None or [x.shape for x in computed] != [x.shape for x in own]:
        return False
    return all(largest_error(widen(x), y)[0] < _ROUGH for x, y in zip(computed, own, strict=True))


def _is_noise(leaf: Any) -> bool:
    """True for what is not chosen by its values, such as a mask or ids."""
    return not isinstance(leaf, Tensor) or leaf.is_floating_point()
