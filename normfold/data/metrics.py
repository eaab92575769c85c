"""How far a student is from its teacher, and from the labels: sums over batches, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.data.checks import IGNORED
from normfold.errors import UsageError
from normfold.load import factory

Outputs = Tensor | tuple[Tensor, ...]
Metric = Callable[[Outputs, Tensor | None], float]
_CHUNK = 1 << 22  # logits that are in float64 at a time


@dataclass(frozen=True)
class Drift:
    """A student beside its teacher; None where it was not asked for, or where there are no labels.

    Attributes:
        samples: rows of input.
        positions: whose answers were compared: the rows, or the tokens of all rows.
        labelled: positions with a label: as many, unless they are tokens or pixels.
        agreement: share of positions where both have the same largest logit.
        kl: mean of KL(teacher || student) over the positions, in nats.
        relative_mse: |student - teacher|^2 / |teacher|^2 of the worst output, where outputs are not logits.
        accuracy_teacher, accuracy_student: share of labelled positions that are right.
        drop: the teacher's accuracy less the student's, in points of a hundred.
        paired_se: standard error of ``drop``. Both answer the same samples, so only what one alone got right
            counts (McNemar); positions of one sample are not taken for independent.
        perplexity_teacher, perplexity_student: exp of the mean cross entropy.
        metric_teacher, metric_student: what the user's function says.
    """

    samples: int
    positions: int = 0
    labelled: int = 0
    agreement: float | None = None
    kl: float | None = None
    relative_mse: float | None = None
    accuracy_teacher: float | None = None
    accuracy_student: float | None = None
    drop: float | None = None
    paired_se: float | None = None
    perplexity_teacher: float | None = None
    perplexity_student: float | None = None
    metric_teacher: float | None = None
    metric_student: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Comparison:
    """Takes batches of outputs; `drift` says what they amount to.

    Args:
        logits: outputs are scores of classes; of several outputs, the first is compared. Otherwise all are, by
            their relative squared error, and labels are for the metric only.
        axis: of the classes; the other axes are positions.
        metric: a function, or ``pkg.mod:fn``: called as ``fn(outputs, labels)`` on all outputs together, a tensor
            or, where there are several, a tuple. They are kept in memory for it.

    Raises:
        UsageError, LoadError: the metric is malformed or cannot be had.
    """

    def __init__(
        self, *, logits: bool = True, axis: int = -1, metric: str | Metric | None = None
    ) -> None:
        self.logits, self.axis = logits, axis
        self._named = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        self._metric = _resolved(metric) if isinstance(metric, str) else metric
        self._samples = 0
        self._has_labels = False
        self._sums = _Sums()
        self._errors: list[tuple[float, float]] = []
        self._kept: list[tuple[list[Tensor], list[Tensor], Tensor | None]] = []

    def add(self, student: Any, teacher: Any, labels: Tensor | None = None) -> None:
        """One batch: tensors, or any nest of them, with a row per sample, and the labels of their positions.

        Labels of -100 do not count. Those of tokens are what each position should predict: they are not moved.

        Raises:
            UsageError: the outputs differ in shape or are not logits, or labels do not fit them.
        """
        mine, theirs = _tensors(student), _tensors(teacher)
        shapes = [[tuple(tensor.shape) for tensor in side] for side in (mine, theirs)]
        if shapes[0] != shapes[1] or not mine:
            raise UsageError(
                "student and teacher do not give the same outputs",
                found=f"shapes {shapes[0]} and {shapes[1]}",
            )
        if self._samples and self._has_labels != (labels is not None):
            raise UsageError("some batches have labels, some have none")
        self._has_labels = labels is not None
        if self.logits:
            self._add_logits(mine[0], theirs[0], labels)
        else:
            pairs = [_error(s, t) for s, t in zip(mine, theirs, strict=True)]
            before = self._errors or [(0.0, 0.0)] * len(pairs)
            self._errors = [(a + c, b + d) for (a, b), (c, d) in zip(before, pairs, strict=True)]
        self._samples += len(mine[0])
        if self._metric is not None:
            own = [[tensor.cpu() for tensor in side] for side in (mine, theirs)]
            self._kept.append((own[0], own[1], labels))

    def drift(self) -> Drift:
        """What all batches so far amount to.

        Raises:
            UsageError: there are none, or the metric gives no number. LoadError: the metric raised.
        """
        if not self._samples:
            raise UsageError("there is nothing to compare: no sample was given")
        teacher = student = None
        if self._metric is not None:
            labels = [part[2] for part in self._kept if part[2] is not None]
            every = torch.cat(labels) if labels else None
            student, teacher = (
                self._judged([part[side] for part in self._kept], every) for side in (0, 1)
            )
            if math.isnan(teacher):
                raise UsageError(
                    f"`{self._named}` gives NaN for the original network: nothing can be judged by it"
                )
        if self.logits:
            found = self._sums.figures()
        else:
            ratios = [e / p if p else (e * math.inf if e else 0.0) for e, p in self._errors]
            found = {"relative_mse": float(torch.tensor(ratios, dtype=torch.float64).max())}
        return Drift(self._samples, **found, metric_teacher=teacher, metric_student=student)

    def _add_logits(self, mine: Tensor, theirs: Tensor, labels: Tensor | None) -> None:
        if mine.dim() < 2 or mine.shape[self.axis] < 2 or not mine.is_floating_point():
            raise UsageError(
                "the outputs are not logits of two or more classes",
                found=f"shape {tuple(mine.shape)}, {str(mine.dtype).removeprefix('torch.')}",
                hint="`--values` (`values=True`) compares them by their squared error",
            )
        mine, theirs = mine.movedim(self.axis, -1), theirs.movedim(self.axis, -1)
        rows = max(1, _CHUNK // max(1, mine[:1].numel()))
        targets: Sequence[Tensor | None] = [None] * -(-len(mine) // rows)
        if labels is not None:
            if labels.numel() != mine[..., 0].numel() or len(labels) != len(mine):
                raise UsageError(
                    "the labels do not fit the outputs",
                    found=f"labels {tuple(labels.shape)}, logits {tuple(mine.shape)}",
                    hint="one class index for each position, -100 where none counts",
                )
            if int(labels.max()) >= mine.shape[-1]:
                raise UsageError(
                    f"a label is {int(labels.max())}, and there are {mine.shape[-1]} classes",
                    hint="labels count from 0",
                )
            targets = labels.to(mine.device).reshape(mine.shape[:-1]).split(rows)
        for s, t, target in zip(mine.split(rows), theirs.split(rows), targets, strict=True):
            self._sums.add(s.double(), t.double(), target)

    def _judged(self, parts: Sequence[Any], labels: Tensor | None) -> float:
        together = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        outputs = together[0] if len(together) == 1 else together
        value = factory.invoke(self._metric, str(self._named), outputs, labels)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(
                f"`{self._named}` does not return a number", found=type(value).__name__
            ) from None


class _Sums:
    """Sums over positions; the last four are over samples, of what the teacher has right more often."""

    def __init__(self) -> None:
        self.positions = self.agree = self.labelled = self.right_t = self.right_s = 0
        self.kl = self.entropy_t = self.entropy_s = 0.0
        self.gains2 = self.gains_counts = self.counts2 = 0

    def add(self, s: Tensor, t: Tensor, labels: Tensor | None) -> None:
        log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
        share = log_t.exp()
        # a class that the teacher rules out (-inf) adds nothing, whatever the student says
        self.kl += float(torch.where(share == 0, 0.0, share * (log_t - log_s)).sum())
        best_s, best_t = _best(s), _best(t)
        self.positions += best_s.numel()
        self.agree += int(((best_s == best_t) & (best_s >= 0)).sum())
        if labels is None:
            return
        counts = labels != IGNORED
        at = labels.clamp_min(0).unsqueeze(-1)
        self.entropy_t -= float(log_t.gather(-1, at).squeeze(-1)[counts].sum())
        self.entropy_s -= float(log_s.gather(-1, at).squeeze(-1)[counts].sum())
        right_t, right_s = (best_t == labels).long(), (best_s == labels).long()
        self.right_t += int(right_t.sum())
        self.right_s += int(right_s.sum())
        gains = (right_t - right_s).reshape(len(labels), -1).sum(1)
        each = counts.reshape(len(labels), -1).sum(1)
        self.labelled += int(each.sum())
        self.gains2 += int((gains * gains).sum())
        self.gains_counts += int((gains * each).sum())
        self.counts2 += int((each * each).sum())

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "agreement": self.agree / self.positions,
            "kl": self.kl / self.positions,
            "labelled": self.labelled,
            "positions": self.positions,
        }
        n = self.labelled
        if n:
            gain = (self.right_t - self.right_s) / n
            # sum over samples of (gains - gain * count)^2; with one label each, b + c - (b - c)^2 / n
            spread = self.gains2 - 2 * gain * self.gains_counts + gain**2 * self.counts2
            found |= {
                "accuracy_teacher": self.right_t / n,
                "accuracy_student": self.right_s / n,
                "drop": 100.0 * gain,
                "paired_se": 100.0 * math.sqrt(max(0.0, spread)) / n,
                "perplexity_teacher": _exp(self.entropy_t / n),
                "perplexity_student": _exp(self.entropy_s / n),
            }
        return found


def _best(logits: Tensor) -> Tensor:
    """The largest logit's class; -1 where one is NaN, which is not an answer."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def comparable(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors in float64, with 0 in the place of what is infinite or NaN in both alike, as a mask is."""
    s, t = s.double(), t.double()
    alike = ~t.isfinite() & ((s == t) | (s.isnan() & t.isnan()))
    return s.masked_fill(alike, 0), t.masked_fill(alike, 0)


def _error(s: Tensor, t: Tensor) -> tuple[float, float]:
    s, t = comparable(s, t)
    return float((s - t).square().sum()), float(t.square().sum())


def _exp(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).exp())


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _resolved(text: str) -> Metric:
    if not factory.looks_like(text):
        raise UsageError(
            f"`{text}` is not of the form `pkg.mod:fn`",
            hint="name a function that is called with all outputs and the labels, and returns a number",
        )
    found: Metric = factory.resolve(text)
    if not callable(found):
        raise UsageError("the metric cannot be called", where=text, found=type(found).__name__)
    return found
