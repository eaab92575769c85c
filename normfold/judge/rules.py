"""The rule by which the result of each pass is judged: one place, for conversions and for `bisect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.judge.half import relative_error
from normfold.judge.verifier import Verifier
from normfold.report import Check, PassReport
from normfold.report.certificate import Certificate
from normfold.rewrite import Exactness, Pass


@dataclass(frozen=True)
class Judged:
    """What was found of a result: the ``certificate`` is of an un-baked graph that only exact passes made."""

    check: Check
    certificate: Certificate | None = None

    @property
    def ok(self) -> bool:
        return self.check.ok and (self.certificate is None or self.certificate.ok)


def budgets(passes: Sequence[Pass], max_error: float | None = None) -> dict[int, float]:
    """What each approximate pass may cost, by its place: ``max_error``, or the budget that it declares.

    Raises:
        UsageError: an approximate pass has no budget, and none is given, or one that is no number from 0 on; or
            one is given, and no pass is approximate.
    """
    found = {}
    for index, item in enumerate(passes):
        if item.exactness is Exactness.APPROXIMATE:
            budget: Any = item.budget if max_error is None else max_error
            if budget is None:
                raise UsageError(
                    f"`{item.name}` is approximate, and nothing says what it may cost",
                    hint="give `--max-error 0.01` (a relative error); `convert` also takes `--verify off`",
                )
            found[index] = relative_error(budget, f"the budget of `{item.name}`")
    if max_error is not None and not found:
        raise UsageError(
            "`--max-error`: no pass is approximate, and exact ones may cost nothing",
            hint="leave it out; half precision has `--half-budget`, integers and training have `--max-drop`",
        )
    return found


@dataclass
class Rules:
    """Judges the graph behind each pass of a pipeline, in the order in which they run.

    Exact passes: certificate and algebra before weights are baked, rounding after. From the first approximate pass
    on that rewrote something: the relative error on typical inputs, against the sum of the budgets so far, or
    ``max_error``.

    Attributes:
        budgets: as `budgets` gives them.
        small: certify at the smallest sizes, and then run the algebra on the smallest case only.
        files: files of the result are judged next, so that what is certified is rounded on the smallest case only.
        spent: budgets of the approximate passes that changed something so far.
    """

    verifier: Verifier
    budgets: dict[int, float]
    max_error: float | None = None
    small: bool = True
    files: bool = False
    spent: list[float] = field(default_factory=list)
    _certified: bool = field(default=False, init=False)

    @property
    def budget(self) -> float | None:
        """Relative error that the result, and its files, may have so far; None where it is exact."""
        if not self.spent:
            return None
        return sum(self.spent) if self.max_error is None else self.max_error

    def ran(self, index: int, report: PassReport) -> None:
        """Take note of a pass, by its place: an approximate one may have spent its budget."""
        if index in self.budgets and report.modified:
            self.spent.append(self.budgets[index])

    def judge(self, graph: Graph) -> Judged:
        """Judge the graph behind the passes that ran."""
        if self.budget is not None:
            return Judged(self.verifier.within(graph, self.budget))
        if graph.baked:
            return Judged(self.verifier.rounding(graph, smallest=self.files and self._certified))
        certificate = self.verifier.certificate(graph, small=self.small)
        self._certified = bool(certificate) and self.small
        return Judged(self.verifier.algebra(graph, self._certified), certificate)
