"""What is said of a written file: its artefact, the verdict of its own bytes, and the budget of integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """What an integer file may lose against the float original, on the samples that it is judged on.

    Attributes:
        agreement: least share of equal answers (top-1), or within two standard errors of it; None where it is said
            only, as of weights of few bits, which change answers and are chosen for their size.
        forfeit: most that other answers may cost, as a share of what all are worth by the original's own
            probabilities, within two standard errors too; one of the two is enough.
        snr_db: least signal-to-noise ratio in dB, of every output.
        below_simulation_db: how far it may lie below that of the simulation in torch,
        clear_db: unless it is at least this: what a runtime rounds differently there is no fault of the file.
        max_drop: points that may be lost, of accuracy where there are labels, else of agreement; it replaces the
            others.
    """

    agreement: float | None = 0.97
    forfeit: float = 0.05
    snr_db: float = 10.0
    below_simulation_db: float = 3.0
    clear_db: float = 30.0
    max_drop: float | None = None

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"{self.max_drop:g} points may be lost"
        answers = (
            "weights of few bits: `--max-drop` limits what they lose"
            if self.agreement is None
            else f"agreement {self.agreement:.0%} or a cost of {self.forfeit:.0%} within two standard errors"
        )
        return (
            f"{answers}, {self.snr_db:g} dB, at most {self.below_simulation_db:g} dB below the simulation where "
            f"under {self.clear_db:g} dB"
        )


@dataclass(frozen=True)
class AgreementCheck:
    """A file of integers in its runtime, against the float original and against its simulation in torch.

    Attributes:
        kind: the runtime and its way of running: ``onnxruntime-all``.
        artefact: name of the file.
        samples: answers that were compared: rows, or the tokens of all rows.
        agreement: share of equal answers; None where outputs are not class scores.
        lost: points of accuracy, or of agreement where there are no labels; None where there are no answers.
        snr_db: signal-to-noise ratio of each output, in dB.
        simulated_db: the same of the simulation.
        budget: what it is judged by.
        forfeited: what other answers cost and its standard error, as `normfold.judge.agreement.forfeited` says;
            None without scores.
    """

    kind: str
    artefact: str
    samples: int
    agreement: float | None
    lost: float | None
    snr_db: tuple[float, ...]
    simulated_db: tuple[float, ...]
    budget: Budget = field(default_factory=Budget)
    seconds: float = 0.0
    note: str = ""
    forfeited: tuple[float, float] | None = None

    def failures(self) -> list[str]:
        """What breaks the budget, in words."""
        if not all(map(math.isfinite, self.snr_db)):
            return ["an output is not finite"]
        budget = self.budget
        if budget.max_drop is not None and self.lost is not None:
            lost = f"{self.lost:.3g} points lost, {budget.max_drop:g} allowed"
            return [] if self.lost <= budget.max_drop else [lost]
        found = []
        if budget.max_drop is None and budget.agreement is not None and self.agreement is not None:
            least = self._least_agreement(budget.agreement)
            cost, error = self.forfeited or (math.inf, 0.0)
            if self.agreement < least and cost > budget.forfeit + 2 * error:
                text = f"agreement {self.agreement:.1%}, at least {least:.1%} asked for"
                if self.forfeited is not None:
                    text += f" (it costs {cost:.1%}, {budget.forfeit + 2 * error:.1%} allowed)"
                found.append(text)
        for mine, promised in zip(self.snr_db, self.simulated_db, strict=True):
            if mine < budget.snr_db:
                found.append(f"{mine:.1f} dB, at least {budget.snr_db:g} dB asked for")
            elif mine < min(promised - budget.below_simulation_db, budget.clear_db):
                found.append(f"{mine:.1f} dB, the simulation has {promised:.1f} dB")
        return found

    def _least_agreement(self, share: float) -> float:
        """The budget's share less two standard errors of it on so many samples."""
        return share - 2 * math.sqrt(share * (1 - share) / max(1, self.samples))

    @property
    def ok(self) -> bool:
        return not self.failures()

    def __bool__(self) -> bool:
        return self.ok

    @property
    def words(self) -> str:
        """What was found: ``agreement 99.2 %, 24.1 dB on 64 samples``."""
        parts = [] if self.agreement is None else [f"agreement {self.agreement:.1%}"]
        if self.forfeited is not None and self.agreement != 1.0:
            parts.append(f"which costs {self.forfeited[0]:.1%}")
        parts += [f"{min(self.snr_db):.1f} dB"] if self.snr_db else []
        return f"{', '.join(parts)} on {self.samples} samples"


State = Literal["pass", "fail", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """What its own runtime says of a file: ``why`` in words, ``runtime`` with its version."""

    state: State
    runtime: str
    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Artefact:
    """A file that was made.

    Attributes:
        path: where it is, or would be had its verdict not failed.
        files: companions that belong to it (external weights, sidecars), by name.
        size: bytes of the file and its external weights.
        sha256: of the file.
        written: False where it was not published.
    """

    path: str
    format: str
    target: str
    size: int
    sha256: str
    verdict: Verdict
    files: tuple[str, ...] = ()
    written: bool = True


def failed(artefacts: Sequence[Artefact]) -> list[Artefact]:
    """Those whose verdict failed."""
    return [item for item in artefacts if item.verdict.state == "fail"]
