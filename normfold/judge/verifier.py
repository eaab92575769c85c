"""The verdict: the original in float64 is the reference, the original's own error is the yardstick.

With r the float64 outputs, e0 the error of the original in its own dtype and e1 that of the result, each
relative to the largest magnitude of the output (of its row), an exact pipeline passes when

    the un-baked graph in float64 agrees with r to 1e-10           (algebra)
    e1 <= 4 e0 + 16 ulps                                          (rounding)

One e0 is one draw of the rounding errors, which a network far from its usual inputs may enlarge at random. Where
e1 is above the limit, e0 is the largest of several: also of inputs that differ in the last bit. Where it still
is, r is evaluated with every op off by as much as kernels are, and e1 may be what that errs by, up to 1e-3.

A network in half precision is judged by |y - r| / |r| over each output of each input (of which 1 - cosine is at
most half the square), against a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from normfold.domains.half import Strict
from normfold.errors import CaptureError, last_line
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.graph import Entry
from normfold.judge.certificate import certify
from normfold.judge.comparison import (
    Outputs,
    Own,
    checked,
    compare,
    is_whole,
    largest_error,
    last_bit,
    owned,
    parts,
    tensors,
    undecided,
    unit_of,
)
from normfold.judge.inputs import Case, count, entered, fewest, typical
from normfold.judge.kept import Kept, computed_at
from normfold.judge.runs import Run, called, original_of, run, run_float64, run_rounded
from normfold.judge.trials import refusal, trials
from normfold.judge.within import within
from normfold.report import Check, OutputCheck
from normfold.report.certificate import Certificate

ALGEBRA_TOLERANCE = 1e-10
# of what may err by a budget: an un-baked graph in float64, and the result in its own types
APPROXIMATIONS = ("approximation-unbaked", "approximation")
DRAWS = 4
_KERNELS = 4.0  # ulps that a kernel may err by


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
        brief: no excuse is looked for once an input has failed, the smallest first: the verdicts are the same.

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
        self._trials = trials(original, seed, samples, tries)
        self.cases, self.notes = self._trials.cases, self._trials.notes
        self._entries: dict[str, Entry] = {}
        self._outputs = Kept(original.output_names, original.output_names)
        self._reference: list[Outputs] | None = None
        self._baseline: list[Outputs] | None = None
        self._rounded: dict[tuple[int, float], tuple[list[Outputs], list[Tensor]]] = {}
        self.brief = False

    def _enter(self, result: Graph) -> None:
        """Let the original read what a result's inputs stand for; so do the files that are made of it."""
        names = self.graph.output_names
        kept = Kept(names, result.output_sources or names)
        if (self._entries, self._outputs) != (result.entries, kept):
            self._entries, self._outputs = dict(result.entries), kept
            self._reference = self._baseline = None
            self._rounded = {}
            self.__dict__.pop("typical", None)

    @property
    def reference(self) -> list[Outputs]:
        """Float64 outputs of the original for every case."""
        if self._reference is None:
            self._reference = self._of_original(self._trials.reference, run_float64, exact=True)
        return self._reference

    def _of_original(
        self,
        known: Mapping[int, Outputs],
        call: Callable[[Graph, Sequence[Case]], list[Outputs]],
        exact: bool = False,
    ) -> list[Outputs]:
        """Outputs of the original for every case; those that are ``known`` are not made again."""
        known = {} if self._entries else known  # which are of its own inputs
        rest = [case for case in self.cases if id(case) not in known]
        made = iter(call(self.graph, entered(self.graph, rest, self._entries, exact)))
        every = [known[id(case)] if id(case) in known else next(made) for case in self.cases]
        return list(map(self._outputs.left, every))

    @cached_property
    def typical(self) -> list[tuple[Case, Outputs]]:
        """What half precision is judged on: typical inputs only, and float64 outputs of the original."""
        found = []
        for whole, outputs in zip(self.cases, self.reference, strict=True):
            case, rows = typical(self.graph, whole)
            if case is None:
                continue
            if rows and all(y.dim() and len(y) == len(whole.rows or ()) for y in outputs):
                outputs = [y[rows] for y in outputs]
            elif rows:  # one that mixes the rows, or does not have them in front
                own = entered(self.graph, [case], self._entries, exact=True)
                outputs = self._outputs.left(run_float64(self.graph, own)[0])
            found.append((case, outputs))
        return found

    @property
    def baseline(self) -> list[Outputs]:
        """Outputs of the original in its own dtype."""
        if self._baseline is None:
            try:
                self._baseline = self._of_original(
                    self._trials.own, lambda graph, given: run(graph, original_of(graph), given)
                )
            except Exception as error:  # anything that a network can raise
                refused = next((case for case in self.cases if refusal(self.graph, case)), None)
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
        captured = run(self.graph, self.graph.module, self.cases)
        return self._judge("capture", self.baseline, start, baseline=captured)

    def algebra(self, graph: Graph, certified: bool = False) -> Check:
        """Un-baked algebra in float64; of a graph that is ``certified``, on the smallest case alone."""
        start = time.perf_counter()
        self._enter(graph)
        of = [self._fewest()] if certified else None
        results = run_float64(graph, self._only(of))
        return self._judge("algebra", results, start, ALGEBRA_TOLERANCE, of=of, certified=certified)

    def _fewest(self, usual: bool = False) -> int:
        """The smallest case on which the original says something: a deviation over a batch of 1 is NaN."""
        says = [any(bool(y.isfinite().any()) for y in outputs) for outputs in self.reference]
        return fewest(self.cases, usual, {index for index, known in enumerate(says) if not known})

    def _only(self, of: Sequence[int] | None) -> list[Case]:
        return self.cases if of is None else [self.cases[index] for index in of]

    def certificate(self, graph: Graph, small: bool = True) -> Certificate:
        """Is an un-baked graph the original's expression? Tested in prime fields, without a tolerance."""
        return certify(self.graph, graph, self.seed, small=small)

    def rounding(self, result: Graph | nn.Module, smallest: bool = False) -> Check:
        """The result in its own dtype, against four times the original's own error; of one whose files are judged
        too, on the ``smallest`` case alone."""
        start = time.perf_counter()
        if isinstance(result, Graph):
            self._enter(result)
        of = [self._fewest()] if smallest else None
        module = result.module if isinstance(result, Graph) else result
        return self._judge("rounding", run(self.graph, module, self._only(of)), start, of=of)

    def outputs(
        self,
        kind: str,
        call: Run,
        budget: float | None = None,
        plain: Callable[[], Run | None] = lambda: None,
        strict: bool = False,
        one: bool = False,
    ) -> Check:
        """Anything that maps flat input tensors to flat output tensors, such as a runtime session.

        Args:
            budget: it is judged as a network in half precision, on typical inputs only.
            plain: makes the original's own export, run in the same way: what the runtime errs there by is no fault
                of the result. Asked for where the result is outside its tolerance, or always with ``strict``.
            one: judge it on one usual input, the smallest.
        """
        start = time.perf_counter()
        if budget is not None:
            results = called(call, [case for case, _ in self.typical])
            return self._within(kind, results, start, budget)
        of = [self._fewest(usual=True)] if one else None
        results = called(call, self._only(of))
        check = self._judge(kind, results, start, of=of)
        if check.ok and not strict:
            return check
        other = plain()
        if other is None:
            return check
        runs = called(other, entered(self.graph, self._only(of), self._entries))
        own = dict(zip(of or range(len(runs)), map(self._outputs.left, runs), strict=True))
        again = self._judge(kind, results, start, plain=own, of=of)
        return replace(again, note="; ".join(filter(None, [again.note, self._said(check, own)])))

    def _said(self, check: Check, own: Mapping[int, Outputs]) -> str:
        """What the original's own export does where a file was outside its tolerance without it."""
        worst = check.worst
        if check.ok or worst is None:
            return ""
        errors = []
        for index, outputs in own.items():
            case, reference = self.cases[index], self.reference[index]
            for label, part in parts(case, reference[0]) if reference else ():
                for place, (expected, got) in enumerate(zip(reference, outputs, strict=False)):
                    if (self._outputs.name(place), label) == (worst.output, worst.inputs):
                        errors.append(largest_error(expected[part], got[part])[0])
        if not errors:
            return ""
        return f"the original's own export errs there by {max(errors):.2e} in this runtime"

    def half(self, kind: str, graph: Graph, budget: float) -> Check:
        """A graph of which parts are in half precision, run with every square rounded to its type."""
        start, run = time.perf_counter(), Evaluator(graph.module, Strict())
        return self._within(
            kind, [tensors(run(*case.leaves)) for case, _ in self.typical], start, budget
        )

    def within(self, result: Graph | nn.Module, budget: float, own_types: bool = False) -> Check:
        """What approximates the original, against a budget of |y - r| / |r|, on typical inputs: a graph in float64
        before it is baked (unless its ``own_types`` are asked for), and anything else in its own types."""
        start = time.perf_counter()
        if isinstance(result, Graph):
            self._enter(result)
        given = [case for case, _ in self.typical]
        if isinstance(result, Graph) and not (own_types or result.baked):
            return self._within(APPROXIMATIONS[0], run_float64(result, given), start, budget)
        module = result.module if isinstance(result, Graph) else result
        return self._within(APPROXIMATIONS[1], run(self.graph, module, given), start, budget)

    def _within(self, kind: str, results: list[Outputs], start: float, budget: float) -> Check:
        got = self._outputs.known(results)
        found = within(self.typical, got, self._outputs.name, budget)
        return Check(kind, tuple(found), time.perf_counter() - start, self.seed)

    def _nearby(self, case: Case) -> list[Outputs]:
        """Outputs in the original's own dtype on inputs that differ in the last bit.

        Of the captured graph: from the reference, which is made of it, nothing but rounding takes them away.
        """
        random = torch.Generator().manual_seed(self.seed)
        moved = [
            replace(case, leaves=tuple(last_bit(leaf, random) for leaf in case.leaves))
            for _ in range(DRAWS)
        ]
        own = entered(self.graph, moved, self._entries)
        return list(map(self._outputs.left, run(self.graph, self.graph.module, own)))

    def _perturbed(self, index: int, own: Outputs) -> tuple[list[Outputs], list[Tensor]]:
        """Runs of the reference in which every op errs as kernels do in the types of ``own``, and which elements
        are another answer there; they are made once.
        """
        case, reference = self.cases[index], self.reference[index]
        unit = max((unit_of(y) for y in own), default=0.0) * _KERNELS
        if (index, unit) in self._rounded:
            return self._rounded[index, unit]
        given = entered(self.graph, [case], self._entries, exact=True)
        runs = [
            self._outputs.left(run_rounded(self.graph, given, self.seed + draw, unit, alike)[0])
            for alike in (False, True)
            for draw in range(DRAWS)
        ]
        masks = [
            undecided(case, expected, [outputs[place] for outputs in runs], size)
            for place, (expected, size) in enumerate(zip(reference, self._sizes, strict=True))
        ]
        self._rounded[index, unit] = runs, masks
        return runs, masks

    @property
    def _sizes(self) -> list[float]:
        return self._outputs.left(computed_at(self.graph))

    def _compared(
        self,
        case: Case,
        reference: Outputs,
        results: Outputs,
        own: Sequence[Own],
        tolerance: float | None,
        typed: bool,
    ) -> list[OutputCheck]:
        # the algebra is compared at the size of what comes out: float64 has digits enough
        sizes = self._sizes if tolerance is None else [0.0] * len(reference)
        return [
            check
            for place, (expected, got) in enumerate(zip(reference, results, strict=True))
            for check in compare(
                self._outputs.name(place),
                case,
                expected,
                got,
                own[place],
                tolerance,
                sizes[place],
                typed,
            )
        ]

    def _judge(
        self,
        kind: str,
        results: list[Outputs],
        start: float,
        tolerance: float | None = None,
        baseline: list[Outputs] | None = None,
        plain: Mapping[int, Outputs] | None = None,
        of: Sequence[int] | None = None,
        certified: bool = False,
    ) -> Check:
        """Compare results of the cases ``of``, or of all."""
        found: list[OutputCheck] = []
        decided = {"*"}
        notes, results = [self._outputs.note], self._outputs.known(results)
        pairs = zip(range(len(self.cases)) if of is None else of, results, strict=True)
        size = {index: count(case) * self.brief for index, case in enumerate(self.cases)}
        for index, got in sorted(pairs, key=lambda pair: size[pair[0]]):
            case, reference = self.cases[index], self.reference[index]
            if len(got) != len(reference):
                notes.append(f"{len(got)} outputs instead of {len(reference)}")
                found.append(OutputCheck("*", case.name, 0.0, float("inf"), 0.0, float("inf")))
                continue
            masks: list[Tensor] = []
            runs: list[Outputs] = []
            if tolerance is None:
                own_runs = self.baseline if baseline is None else baseline
                runs = [own_runs[index]] if own_runs else []
            others = plain[index] if plain is not None else []
            own = owned(len(reference), runs, others)
            checks = self._compared(case, reference, got, own, tolerance, kind == "rounding")
            enough = self.brief and not all(check.ok for check in found)
            if runs and not enough and not all(check.ok for check in checks):
                own = owned(len(reference), [*runs, *self._nearby(case)], others)
                checks = self._compared(case, reference, got, own, tolerance, kind == "rounding")
            # float64 rounds too: numbers that cancel to nothing, a sine of millions
            mine = runs[0] if runs else reference if tolerance is not None else None
            if mine is not None and not enough and not all(check.ok for check in checks):
                drawn, masks = self._perturbed(index, mine)
                own = [
                    replace(item, rounded=tuple(draw[place] for draw in drawn), undecided=mask)
                    for place, (item, mask) in enumerate(zip(own, masks, strict=True))
                ]
                checks = self._compared(case, reference, got, own, tolerance, kind == "rounding")
                tied = sum(int(mask.sum()) for mask in masks)
                if tied:
                    notes.append(
                        f"{case.name}: {tied} numbers are decided by rounding, and not judged"
                    )
            found += checks
            places = [at for at in range(len(reference)) if not masks or not is_whole(masks[at])]
            decided |= {*map(self._outputs.name, places)}
        seconds = time.perf_counter() - start
        check = Check(kind, tuple(found), seconds, self.seed)
        tied_only = dict.fromkeys(x.output for x in found if x.output not in decided)
        return checked(check, self.reference, notes, certified, [*tied_only])
