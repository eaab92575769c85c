"""What training did to a student, and how far it is from its teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CONFIDENT = 1.645  # standard errors that one measurement in twenty is off by, to one side


@dataclass(frozen=True)
class Evaluation:
    """One look at the held-out samples: ``loss`` is the mean training loss since the last one (None at the
    start), ``distance`` the held-out divergence (KL, or relative squared error) from the teacher."""

    step: int
    loss: float | None
    distance: float
    rate: float


@dataclass(frozen=True)
class Rollback:
    """A step at which the student diverged, why, and the learning rate from there on."""

    step: int
    why: str
    back_to: int
    rate: float


@dataclass(frozen=True)
class DialPoint:
    """Outputs with ``count`` norms replaced, ``last`` the one that came last, without training: divergence from
    the teacher, top-1 agreement in percent (None where outputs are not scores), accuracy in percent (None without
    labels) and the user's metric (None without one). ``error``: standard error, in points, of what accuracy or
    agreement lost (None where outputs are not scores)."""

    count: int
    last: str
    divergence: float
    agreement: float | None
    accuracy: float | None = None
    metric: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Ranking:
    """``harms``: (site, divergence when it alone is replaced), cheapest first. ``dial``: cheapest-first, from none
    to all."""

    harms: tuple[tuple[str, float], ...]
    dial: tuple[DialPoint, ...]

    def within(self, max_drop: float) -> int:
        """How many norms, cheapest first, may go while each step loses at most ``max_drop``, untrained; 0 where
        nothing says what is lost. It must do so with 95 % confidence: as many as possible are taken, and the
        luckiest of several points is not as good as it looks. A user's metric has no known error."""
        count = 0
        for point in self.dial:
            lost = self.drop(point)
            sure = 0.0 if point.metric is not None else CONFIDENT * (point.error or 0.0)
            if lost is None or not lost + sure <= max_drop:
                break
            count = point.count
        return count

    def drop(self, point: DialPoint) -> float | None:
        """What is lost at a point of the dial: of the metric, else of the accuracy, else of the agreement."""
        start = self.dial[0]
        pairs = (
            (start.metric, point.metric),
            (start.accuracy, point.accuracy),
            (start.agreement, point.agreement),
        )
        return next((a - b for a, b in pairs if a is not None and b is not None), None)

    def worst(self, share: float = 0.5) -> list[str]:
        """The fewest norms that hold more than ``share`` of the summed harm, worst first."""
        total, held, found = sum(harm for _, harm in self.harms), 0.0, []
        for site, harm in reversed(self.harms):
            found.append(site)
            held += harm
            if held > share * total:
                break
        return found


@dataclass
class TrainingReport:
    """A distillation.

    Attributes:
        to: kind of norm.
        data: where the samples came from.
        samples, held_out: how many were trained on, how many only judged on.
        steps: taken in all. ``best``: after which of them the student that was kept was found; 0 if training made
            it no better.
        start, distance: held-out divergence of the student before and after training.
        evaluations, rollbacks: in order.
        diverged: the retries ran out; nothing may be exported.
        refreshed: were the statistics taken anew, because that was better?
        stopped: why training ended.
        seconds: of training, all sessions together.
        ranking: harm of each norm, and the dial; None where it was not measured.
        drift: teacher and student on the held-out samples.
        max_drop: what ``drift`` was judged by, in the unit of ``drop``; None where it was not.
    """

    to: str
    data: str = ""
    samples: int = 0
    held_out: int = 0
    steps: int = 0
    best: int = 0
    start: float = float("nan")
    distance: float = float("nan")
    evaluations: list[Evaluation] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    diverged: bool = False
    refreshed: bool = False
    stopped: str = ""
    seconds: float = 0.0
    ranking: Ranking | None = None
    drift: dict[str, Any] = field(default_factory=dict)
    max_drop: float | None = None

    @property
    def drop(self) -> float | None:
        """What is lost on the held-out samples: of the user's metric if there is one, else points of accuracy if
        there are labels, else of agreement; None where outputs are not scores and there is no metric."""
        drift = self.drift
        if drift.get("metric_teacher") is not None:
            return float(drift["metric_teacher"] - drift["metric_student"])
        if drift.get("drop") is not None:
            return float(drift["drop"])
        agreement = drift.get("agreement")
        return None if agreement is None else 100 * (1 - agreement)

    @property
    def unit(self) -> str:
        """Of ``drop``."""
        return "of the metric" if self.drift.get("metric_teacher") is not None else "points"

    @property
    def ok(self) -> bool:
        """True if the student may be used: it did not diverge, and it lost no more than was allowed."""
        if self.diverged:
            return False
        return self.max_drop is None or (self.drop is not None and self.drop <= self.max_drop)

    @property
    def refusal(self) -> str:
        """Why it may not be used; empty if it may."""
        if self.ok:
            return ""
        if self.diverged:
            return "training diverged"
        lost = "unknown" if self.drop is None else f"{self.drop:.4g} {self.unit}"
        return f"lost {lost} on the held-out samples, {self.max_drop:g} allowed"
