"""Streamed figures against the formulas on everything at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normfold.data import metrics
from normfold.data.metrics import Comparison, Drift, Outputs
from normfold.errors import LoadError, UsageError


def compared(
    s: Tensor, t: Tensor, labels: Tensor | None = None, size: int = 7, axis: int = -1
) -> Drift:
    comparison = Comparison(axis=axis)
    for at in range(0, len(s), size):
        rows = slice(at, at + size)
        comparison.add(s[rows], t[rows], None if labels is None else labels[rows])
    return comparison.drift()


def pair(*shape: int, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    teacher = torch.randn(shape)
    return teacher + noise * torch.randn(shape), teacher


def close(found: float | None, wanted: float | Tensor) -> bool:
    return found is not None and math.isclose(found, float(wanted), rel_tol=1e-12, abs_tol=1e-15)


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 22])
def test_classes(monkeypatch: pytest.MonkeyPatch, size: int, chunk: int) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    s, t = pair(50, 5)
    labels = t.argmax(-1)
    labels[::3] = 2
    drift = compared(s, t, labels, size)
    a, b = s.double(), t.double()
    right_s, right_t = s.argmax(-1) == labels, t.argmax(-1) == labels
    assert close(drift.agreement, (s.argmax(-1) == t.argmax(-1)).double().mean())
    log_a, log_b = F.log_softmax(a, -1), F.log_softmax(b, -1)
    assert close(drift.kl, F.kl_div(log_a, log_b, reduction="batchmean", log_target=True))
    assert close(drift.accuracy_student, right_s.double().mean())
    assert close(drift.accuracy_teacher, right_t.double().mean())
    assert close(drift.drop, 100 * (right_t.double().mean() - right_s.double().mean()))
    only_t, only_s = int((right_t & ~right_s).sum()), int((right_s & ~right_t).sum())
    assert only_t > only_s > 0
    wanted = 100 * math.sqrt(only_t + only_s - (only_t - only_s) ** 2 / 50) / 50
    assert close(drift.paired_se, wanted)
    assert close(drift.perplexity_student, F.cross_entropy(a, labels).exp())
    assert close(drift.perplexity_teacher, F.cross_entropy(b, labels).exp())
    assert (drift.samples, drift.labelled) == (50, 50)
    assert drift.relative_mse is drift.metric_student is None


def test_tokens() -> None:
    s, t = pair(12, 6, 9)
    labels = torch.randint(0, 9, (12, 6))
    labels[2, 3:] = labels[5] = -100
    drift = compared(s, t, labels)
    a, b, flat = s.double().flatten(0, 1), t.double().flatten(0, 1), labels.flatten()
    assert close(drift.perplexity_student, F.cross_entropy(a, flat).exp())
    assert close(drift.perplexity_teacher, F.cross_entropy(b, flat).exp())
    counts = labels != -100
    assert drift.labelled == int(counts.sum()) == 63
    right_s, right_t = ((x.argmax(-1) == labels) & counts for x in (s, t))
    assert close(drift.accuracy_student, right_s.double().sum() / 63)
    gains = (right_t.double() - right_s.double()).sum(1)
    mean = gains.sum() / 63
    assert close(drift.drop, 100 * mean)
    spread = (gains - mean * counts.sum(1)).square().sum()
    assert close(drift.paired_se, 100 * spread.sqrt() / 63)
    assert close(drift.agreement, (s.argmax(-1) == t.argmax(-1)).double().mean())


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    drops, errors = [], []
    for _ in range(400):
        right_t = torch.rand(200, generator=generator) < 0.8
        right_s = torch.where(torch.rand(200, generator=generator) < 0.2, ~right_t, right_t)
        one = [F.one_hot(right.long(), 2).float() for right in (right_s, right_t)]
        drift = compared(one[0], one[1], torch.ones(200, dtype=torch.int64), 200)
        assert drift.drop is not None
        assert drift.paired_se is not None
        drops.append(drift.drop)
        errors.append(drift.paired_se)
    spread, claimed = torch.tensor(drops).std(), torch.tensor(errors).mean()
    assert 0.9 < float(claimed / spread) < 1.1


def test_classes_on_another_axis() -> None:
    s, t = pair(6, 4, 3, 3)
    labels = torch.randint(0, 4, (6, 3, 3))
    moved = [x.movedim(1, -1).contiguous() for x in (s, t)]
    assert compared(s, t, labels, axis=1) == compared(moved[0], moved[1], labels)


def test_equal_outputs_are_at_no_distance() -> None:
    s, _ = pair(20, 5)
    drift = compared(s, s, s.argmax(-1))
    assert (drift.agreement, drift.kl, drift.drop, drift.paired_se) == (1.0, 0.0, 0.0, 0.0)
    drift = compared(s, s)
    assert drift.accuracy_student is drift.perplexity_student is drift.paired_se is None
    assert drift.labelled == 0


def test_an_error_shows() -> None:
    _, t = pair(200, 5)
    near, far = (compared(t + noise * torch.randn_like(t), t, t.argmax(-1)) for noise in (0.01, 1))
    assert near.kl is not None
    assert far.kl is not None
    assert far.kl > 100 * near.kl > 0
    assert near.drop is not None
    assert far.drop is not None
    assert far.drop > 10 > near.drop
    swapped = t[:, [1, 0, 2, 3, 4]]
    assert (compared(swapped, t).agreement or 1) < 0.8


def test_masked_classes_and_nan() -> None:
    s, t = pair(8, 5)
    labels = t.argmax(-1)
    t[:, 4] = s[:, 4] = -math.inf
    labels[labels == 4] = 0
    ruled_out = compared(s, t, labels)
    assert close(ruled_out.kl, float(compared(s[:, :4], t[:, :4]).kl or 0))
    s[0] = math.nan
    t[0] = math.nan
    broken = compared(s, t, labels)
    assert broken.kl is not None
    assert math.isnan(broken.kl)
    assert (broken.agreement or 1) <= 7 / 8
    assert (broken.accuracy_teacher or 1) <= 7 / 8
    wide = torch.tensor([[0.0, 2000.0], [0.0, 2000.0]])
    assert compared(wide, wide, torch.tensor([0, 0])).perplexity_student == math.inf


def test_values() -> None:
    s, t = pair(9, 4)
    u, v = pair(9, 2, 3, noise=0.1)
    comparison = Comparison(logits=False)
    comparison.add((s[:5], u[:5]), (t[:5], v[:5]))
    comparison.add([s[5:], u[5:]], [t[5:], v[5:]])
    drift = comparison.drift()
    wanted = (s.double() - t).square().sum() / t.double().square().sum()
    assert close(drift.relative_mse, wanted)  # the worse of the two
    assert drift.agreement is drift.kl is None
    for off, expected in ((0.0, 0.0), (1.0, math.inf), (math.nan, math.nan)):
        comparison = Comparison(logits=False)
        comparison.add(torch.full((3, 2), off), torch.zeros(3, 2))
        assert comparison.drift().relative_mse == pytest.approx(expected, nan_ok=True)


def own_metric(outputs: Outputs, labels: Tensor | None) -> Tensor:
    assert isinstance(outputs, Tensor)
    assert labels is not None
    return (outputs.argmax(-1) == labels).float().mean()


METRICS = """
def pairs(outputs, labels):
    first, second = outputs
    return first.sum() - second.sum() if labels is None else 0

def scaled(by):
    return lambda outputs, labels: by * float(outputs.sum())

def words(outputs, labels):
    return "good"

def broken(outputs, labels):
    raise ValueError("not these")

number = 3
"""


def test_the_users_metric(tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_cwd / "own_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(str(tmp_cwd))
    s, t = pair(20, 5)
    labels = t.argmax(-1)
    comparison = Comparison(metric=lambda o, y: float(own_metric(o, y)))
    comparison.add([s[:9]], [t[:9]], labels[:9])
    comparison.add([s[9:]], [t[9:]], labels[9:])
    drift = comparison.drift()
    assert drift.metric_teacher == 1.0
    assert drift.metric_student == pytest.approx(drift.accuracy_student)
    comparison = Comparison(logits=False, metric="own_metrics:pairs")
    comparison.add((s, t), (t, t))
    drift = comparison.drift()
    assert drift.metric_student == pytest.approx(float(s.sum() - t.sum()))
    assert drift.metric_teacher == 0.0
    comparison = Comparison(metric="own_metrics:scaled(by=3)")
    comparison.add(s, t)
    assert comparison.drift().metric_student == pytest.approx(3 * float(s.sum()))
    comparison = Comparison(metric="own_metrics:words")
    comparison.add(s, t)
    with pytest.raises(UsageError, match="does not return a number"):
        comparison.drift()
    comparison = Comparison(metric="own_metrics:broken")
    comparison.add(s, t)
    with pytest.raises(LoadError, match="not these"):
        comparison.drift()
    for text, kind in (
        ("own_metrics", UsageError),
        ("own_metrics:number", UsageError),
        ("own_metrics:scale", LoadError),
    ):
        with pytest.raises(kind):
            Comparison(metric=text)


def test_what_cannot_be_compared() -> None:
    s, t = pair(6, 5)
    with pytest.raises(UsageError, match="same outputs"):
        Comparison().add(s, t[:, :4])
    with pytest.raises(UsageError, match="same outputs"):
        Comparison().add((s, s), t)
    for one in (s[:, :1], s[:, 0], torch.zeros(6, 5, dtype=torch.int64)):
        with pytest.raises(UsageError, match="not logits"):
            Comparison().add(one, one)
    with pytest.raises(UsageError, match="do not fit"):
        Comparison().add(s, t, torch.zeros(6, 5, dtype=torch.int64))
    with pytest.raises(UsageError, match="5 classes"):
        Comparison().add(s, t, torch.full((6,), 5))
    comparison = Comparison()
    comparison.add(s, t)
    with pytest.raises(UsageError, match="some have none"):
        comparison.add(s, t, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(UsageError, match="nothing to compare"):
        Comparison().drift()


def test_json() -> None:
    s, t = pair(6, 5)
    drift = compared(s, t, torch.zeros(6, 1, dtype=torch.int64))
    assert Drift(**json.loads(json.dumps(drift.to_dict()))) == drift
