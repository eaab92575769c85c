"""The verdict: the original in float64 is the reference, the original's own error is the yardstick.

With r the float64 outputs, e0 the error of the original in its own dtype and e1 that of the result, each
relative to the largest magnitude of the output (of its row), an exact pipeline passes when

    the un-baked graph in float64 agrees with r to 1e-10           (algebra)
    e1 <= 4 e0 + 16 ulps                                          (rounding)

One e0 is one draw of the rounding errors, which a network far from its usual inputs may enlarge at random. Where
e1 is above the limit, e0 is the largest of several: also of inputs that differ in the last bit.

A network in half precision is judged by |y - r| / |r| over each output of each input (of which 1 - cosine is at
most half the square), against a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.domains.half import Strict
from normfold.errors import CaptureError, UsageError, last_line
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator, Float64, widen
from normfold.ir.expressions import late
from normfold.ir.fresh import fresh
from normfold.ir.graph import Entry
from normfold.ir.randomness import draws
from normfold.ir.sizes import Sizes
from normfold.judge.comparison import (
    Outputs,
    compare,
    distance,
    largest_error,
    last_bit,
    parts,
    tensors,
)
from normfold.judge.inputs import (
    TYPICAL,
    Case,
    asked_sizes,
    cases,
    entered,
    is_single,
    other_sizes,
    single_sizes,
)
from normfold.judge.kept import Kept
from normfold.report import Check, OutputCheck

ALGEBRA_TOLERANCE = 1e-10
DRAWS = 4
_ROUGH = 0.01  # what no rounding does between two runs of one network


class Verifier:
    """Judges rewritten graphs, modules and exported files against one original.

    Args:
        original: the captured graph, not rewritten.
        seed: of the random inputs.
        samples: flat input tuples of the user's own, judged besides the generated ones.
        tries: sizes to judge at, as texts of `--try`; where there are none, free sizes are tried at others that
            the network takes.

    Attributes:
        notes: what could not be tried.

    Raises:
        UsageError: a size in ``tries`` that the network does not take.
    """

    def __init__(
        self,
        original: Graph,
        seed: int = 0,
        samples: list[tuple[Any, ...]] | None = None,
        tries: Sequence[str] = (),
    ) -> None:
        self.graph, self.seed, self.samples = original, seed, samples
        self.notes: list[str] = []
        own = cases(original, seed, samples)
        others = self._asked(tries) if tries else self._another_size()
        singles, left_out = self._single_sizes()
        self.cases = [
            *(case for case in own if not is_single(original, case, left_out)),
            *others,
            *singles,
        ]
        self._entries: dict[str, Entry] = {}
        self._outputs = Kept(original.output_names, original.output_names)
        self._reference: list[Outputs] | None = None
        self._baseline: list[Outputs] | None = None

    def _asked(self, tries: Sequence[str]) -> list[Case]:
        found = asked_sizes(self.graph, tries, self.seed)
        for case in found:
            failure = self._refused(case)
            if failure:
                raise UsageError(
                    f"`--try {case.name}`: the network refuses this size", found=failure
                )
        return found

    def _another_size(self) -> list[Case]:
        """The first of the other sizes that the original accepts; a note where it accepts none."""
        refused = []
        for case in other_sizes(self.graph, self.seed):
            failure = self._refused(case)
            if not failure:
                return [case]
            refused.append(f"{case.name} ({failure})")
        free = Sizes(self.graph).free
        if free:
            why = f"it refuses {refused[0]}" if refused else "none was found that it takes"
            self.notes.append(
                f"judged at the sizes of the example only, though {', '.join(f'`{x}`' for x in free)} may vary: "
                f"{why}; `--try` gives others"
            )
        return []

    def _single_sizes(self) -> tuple[list[Case], set[Any]]:
        """Cases of free sizes of 1, where the network takes them; and the sizes that must not be 1, with a note.

        Those are where the network is another function at 1 than what was captured.
        """
        found: list[Case] = []
        others: set[Any] = set()
        if any(map(draws, self.graph.nodes)):  # no two calls are comparable
            return found, others
        sizes = Sizes(self.graph)
        for symbol, case in single_sizes(self.graph, self.seed):
            try:
                (own,) = self._run(self._original, [case])
            except Exception:  # the network takes no size of 1 there
                continue
            try:
                (captured,) = self._run(self.graph.module, [case])
            except Exception:  # anything that a graph can raise
                captured = []
            if [x.shape for x in own] == [x.shape for x in captured] and all(
                largest_error(widen(x), y)[0] < _ROUGH for x, y in zip(own, captured, strict=True)
            ):
                found.append(case)
            else:
                others.add(symbol)
                axis = sizes.axes_of(symbol)[0]
                hint = (
                    "use `--batch static` for a file of one size" if symbol == sizes.batch else ""
                )
                self.notes.append(
                    f"`{axis}` of 1: the network does something else there than what was captured at larger "
                    f"sizes, and than the files; {hint or 'a file for that needs a fixed size there'}"
                )
        return found, others

    def _refused(self, case: Case) -> str:
        """What the original says to inputs that it does not take; nothing where it runs."""
        try:
            self._run(self._original, [case])
        except Exception as error:  # anything that a network can raise
            return last_line(error)
        return ""

    @property
    def _original(self) -> Any:
        return self.graph.original if self.graph.original is not None else self.graph.module

    def _enter(self, result: Graph) -> None:
        """Let the original read what a result's inputs stand for; so do the files that are made of it."""
        names = self.graph.output_names
        kept = Kept(names, result.output_sources or names)
        if (self._entries, self._outputs) != (result.entries, kept):
            self._entries, self._outputs = dict(result.entries), kept
            self._reference = self._baseline = None
            self.__dict__.pop("typical", None)

    @property
    def reference(self) -> list[Outputs]:
        """Float64 outputs of the original for every case."""
        if self._reference is None:
            own = entered(self.graph, self.cases, self._entries, exact=True)
            self._reference = list(map(self._outputs.left, self._float64(self.graph, own)))
        return self._reference

    @cached_property
    def typical(self) -> list[tuple[Case, Outputs]]:
        """What half precision is judged on: typical inputs only, and float64 outputs of the original."""
        known = dict(zip((case.name for case in self.cases), self.reference, strict=True))
        found = []
        for case in cases(self.graph, self.seed, self.samples, TYPICAL):
            if case.name not in known:
                continue
            outputs, rows = known[case.name], self.cases[0].rows
            if case.rows is not None and rows is not None:
                if all(y.dim() and len(y) == len(rows) for y in outputs):
                    outputs = [y[[rows.index(row) for row in case.rows]] for y in outputs]
                else:  # one that mixes the rows, or does not have them in front
                    own = entered(self.graph, [case], self._entries, exact=True)
                    outputs = self._outputs.left(self._float64(self.graph, own)[0])
            found.append((case, outputs))
        return found

    @property
    def baseline(self) -> list[Outputs]:
        """Outputs of the original in its own dtype."""
        if self._baseline is None:
            try:
                own = entered(self.graph, self.cases, self._entries)
                self._baseline = list(map(self._outputs.left, self._run(self._original, own)))
            except Exception as error:  # anything that a network can raise
                refused = next((case for case in self.cases if self._refused(case)), None)
                if refused is None:
                    raise
                shapes = [tuple(x.shape) for x in refused.leaves if isinstance(x, Tensor)]
                raise CaptureError(
                    "the network refuses inputs that the captured graph takes",
                    where=" ".join(map(str, shapes)),
                    found=last_line(error),
                    hint="`--batch static` keeps the batch, and a size without `--dynamic` stays as it is",
                ) from error
        return self._baseline

    def capture(self) -> Check:
        """Does the captured graph compute what the module computes? (Same dtype, same kernels.)"""
        start = time.perf_counter()
        # what agrees to 16 ulps needs no allowance for the captured graph's own error: a forward pass less
        check = self._judge("capture", self.baseline, start, baseline=[])
        if check.ok:
            return check
        captured = self._run(self.graph.module)
        return self._judge("capture", self.baseline, start, baseline=captured)

    def algebra(self, graph: Graph) -> Check:
        """Un-baked algebra in float64."""
        start = time.perf_counter()
        self._enter(graph)
        return self._judge("algebra", self._float64(graph), start, tolerance=ALGEBRA_TOLERANCE)

    def rounding(self, result: Graph | nn.Module) -> Check:
        """The result in its own dtype, against four times the original's own error."""
        start = time.perf_counter()
        if isinstance(result, Graph):
            self._enter(result)
        return self._judge(
            "rounding", self._run(result.module if isinstance(result, Graph) else result), start
        )

    def outputs(
        self,
        kind: str,
        run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        budget: float | None = None,
    ) -> Check:
        """Anything that maps flat input tensors to flat output tensors, such as a runtime session.

        With a ``budget`` it is judged as a network in half precision, on typical inputs only.
        """
        start = time.perf_counter()
        results = []
        for case in self.cases if budget is None else [case for case, _ in self.typical]:
            inputs = [leaf for leaf in case.leaves if isinstance(leaf, Tensor)]
            with torch.no_grad():
                results.append(list(run(inputs)))
        if budget is not None:
            return self._within(kind, results, start, budget)
        return self._judge(kind, results, start)

    def half(self, kind: str, graph: Graph, budget: float) -> Check:
        """A graph of which parts are in half precision, run with every square rounded to its type."""
        start, run = time.perf_counter(), Evaluator(graph.module, Strict())
        return self._within(
            kind, [tensors(run(*case.leaves)) for case, _ in self.typical], start, budget
        )

    def _within(self, kind: str, results: list[Outputs], start: float, budget: float) -> Check:
        found = []
        for (case, reference), got in zip(self.typical, self._outputs.known(results), strict=True):
            if [x.shape for x in reference] != [x.shape for x in got]:
                found.append(OutputCheck("*", case.name, 0.0, float("inf"), budget, float("inf")))
                continue
            for place, (expected, mine) in enumerate(zip(reference, got, strict=True)):
                for label, part in parts(case, expected):
                    error, absolute = distance(expected[part], mine[part])
                    check = OutputCheck(
                        self._outputs.name(place), label, 0.0, error, budget, absolute
                    )
                    found.append(check)
        return Check(kind, tuple(found), time.perf_counter() - start, self.seed)

    def _float64(self, graph: Graph, of: Sequence[Case] | None = None) -> list[Outputs]:
        run = Evaluator(graph.module, Float64(), graph=late(graph.module.graph))
        return [tensors(run(*case.leaves)) for case in of or self.cases]

    def _run(self, module: Any, of: Sequence[Case] | None = None) -> list[Outputs]:
        """Outputs of a network, each case on copies of it and of the inputs, which a call may change."""
        _, tree = pytree.tree_flatten((self.graph.args, self.graph.kwargs))
        results = []
        with torch.no_grad():
            for case in of or self.cases:
                own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in case.leaves]
                args, kwargs = pytree.tree_unflatten(own, tree)
                called = fresh(module) if isinstance(module, nn.Module) else module
                results.append(tensors(called(*args, **kwargs)))
        return results

    def _nearby(self, case: Case) -> list[Outputs]:
        """Outputs in the original's own dtype on inputs that differ in the last bit.

        Of the captured graph: from the reference, which is made of it, nothing but rounding takes them away.
        """
        random = torch.Generator().manual_seed(self.seed)
        moved = [
            replace(case, leaves=tuple(last_bit(leaf, random) for leaf in case.leaves))
            for _ in range(DRAWS)
        ]
        runs = self._run(self.graph.module, entered(self.graph, moved, self._entries))
        return list(map(self._outputs.left, runs))

    def _compared(
        self,
        case: Case,
        reference: Outputs,
        results: Outputs,
        own: Sequence[Outputs],
        tolerance: float | None,
    ) -> list[OutputCheck]:
        return [
            check
            for place, (expected, got) in enumerate(zip(reference, results, strict=True))
            for check in compare(
                self._outputs.name(place),
                case,
                expected,
                got,
                [run[place] for run in own],
                tolerance,
            )
        ]

    def _judge(
        self,
        kind: str,
        results: list[Outputs],
        start: float,
        tolerance: float | None = None,
        baseline: list[Outputs] | None = None,
    ) -> Check:
        found: list[OutputCheck] = []
        note, results = self._outputs.note, self._outputs.known(results)
        for index, (case, reference) in enumerate(zip(self.cases, self.reference, strict=True)):
            if len(results[index]) != len(reference):
                note = f"{len(results[index])} outputs instead of {len(reference)}"
                found.append(OutputCheck("*", case.name, 0.0, float("inf"), 0.0, float("inf")))
                continue
            own: list[Outputs] = []
            if tolerance is None:
                runs = self.baseline if baseline is None else baseline
                own = [runs[index]] if runs else []
            checks = self._compared(case, reference, results[index], own, tolerance)
            if own and not all(check.ok for check in checks):
                own = [*own, *self._nearby(case)]
                checks = self._compared(case, reference, results[index], own, tolerance)
            found += checks
        dropped = [check for check in found if check.tolerance == float("inf")]
        if dropped:
            spoilt = len({check.output for check in dropped})
            note = note or f"{spoilt} outputs overflow or are NaN in the original: not judged"
        holes = len(
            {
                place
                for case in self.reference
                for place, y in enumerate(case)
                if torch.isnan(y).any()
            }
        )
        if holes and not note:
            note = f"{holes} outputs hold NaN in the original: not judged there"
        if dropped and len(dropped) == len(found):  # a verdict on nothing is none
            note = "every output overflows or is NaN in the original: nothing to judge"
            found.append(OutputCheck("*", "every input", 0.0, float("inf"), 0.0, float("inf")))
        return Check(kind, tuple(found), time.perf_counter() - start, self.seed, note)
