"""distill: nearer to the teacher, the best student kept, divergence caught, interruptions without effect."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normfold.errors import LoadError, UsageError
from normfold.ir import Graph
from normfold.job import Train
from normfold.progress import Listener, Progress, silent
from normfold.report.training import TrainingReport
from normfold.rewrite.offline import KINDS
from normfold.train.distill import distill
from normfold.train.student import as_module, streams
from normfold.train.teacher import Teacher
from tests.sampling import every_other
from tests.train.nets import data, pair

RECIPE = Train(steps=60, batch_size=32, rate=3e-3, evaluations=6, hold_out=0.2)


def state(graph: Graph) -> dict[str, Tensor]:
    return {str(node.target): graph.value(node) for node in graph.nodes if node.op == "get_attr"}


def train(
    kind: str, recipe: Train = RECIPE, checkpoint: Path | None = None, say: Listener = silent
) -> tuple[Graph, TrainingReport]:
    teacher, student = pair(kind)
    recipe = dataclasses.replace(recipe, to=kind, checkpoint=checkpoint)
    return student, distill(teacher, student, data(), recipe, say=say)


@pytest.mark.parametrize("kind", every_other(KINDS))
def test_the_student_comes_nearer(kind: str) -> None:
    student, report = train(kind)
    assert report.distance < 0.75 * report.start
    assert not report.diverged
    assert report.ok
    assert not report.rollbacks
    assert report.steps == 60
    assert [item.step for item in report.evaluations] == [0, 10, 20, 30, 40, 50, 60]
    assert report.best in (10, 20, 30, 40, 50, 60)
    # the graph itself is the student that was kept
    teacher, _ = pair(kind)
    held_out = data().split(RECIPE.hold_out, 0)[1]
    (x,) = held_out.inputs(slice(None))
    with torch.no_grad():
        s, t = (torch.log_softmax(graph.module(x), -1) for graph in (student, teacher))
    kl = float((t.exp() * (t - s)).sum(-1).mean())
    assert kl == pytest.approx(report.distance, rel=1e-4)


def test_a_transition_is_judged_only_when_it_is_over() -> None:
    _, report = train("prepbn", dataclasses.replace(RECIPE, transition=0.7))
    assert report.best >= 0.7 * 60


@pytest.mark.parametrize("kind", ["affine", "un", "prepbn"])
def test_every_kind_can_take_a_transition_in_stages(kind: str) -> None:
    recipe = dataclasses.replace(RECIPE, transition=0.5, stages=0)
    student, report = train(kind, recipe)
    assert report.best >= 0.5 * 60
    assert report.distance < report.start
    module = as_module(student).eval()
    (x,) = data().inputs(slice(None))
    torch.testing.assert_close(module(x)[0], student.module(x), rtol=1e-5, atol=1e-6)


def test_other_outputs_than_logits() -> None:
    _, report = train("affine", dataclasses.replace(RECIPE, values=True, features=0.0))
    assert report.distance < 0.75 * report.start


def test_patience_stops() -> None:
    recipe = dataclasses.replace(RECIPE, steps=400, evaluations=40, rate=3e-2, patience=2)
    _, report = train("affine", recipe)
    assert report.steps < 400
    assert "no better student" in report.stopped
    assert report.best < report.steps


def test_held_out_samples_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = pair("affine")
    all_data = data()
    held_out = {
        tuple(row.flatten().tolist()) for row in all_data.split(0.2, 0)[1].inputs(slice(None))[0]
    }
    seen: set[tuple[float, ...]] = set()
    original = Teacher.__call__

    def spy(self: Teacher, rows: Tensor) -> list[Tensor]:
        (x,) = self.data.inputs(rows)
        if len(self.data) == 160:
            seen.update(tuple(row.flatten().tolist()) for row in x)
        return original(self, rows)

    monkeypatch.setattr(Teacher, "__call__", spy)
    distill(teacher, student, all_data, dataclasses.replace(RECIPE, to="affine"))
    assert len(seen) == 160
    assert not seen & held_out


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [pytest.param("bn", marks=pytest.mark.slow), "prepbn", "un"])
def test_resumed_is_uninterrupted(kind: str, tmp_path: Path) -> None:
    whole, expected = train(kind)

    def interrupt(progress: Progress) -> None:
        if progress.stage == "distilling" and progress.done == 37:
            raise Stop

    path = tmp_path / "run.ckpt"
    with pytest.raises(Stop):
        train(kind, checkpoint=path, say=interrupt)
    said: list[Progress] = []
    resumed, report = train(kind, checkpoint=path, say=said.append)
    assert Progress("distilling", 30, 60, "resumed") in said
    assert (report.distance, report.best, report.steps) == (
        expected.distance,
        expected.best,
        expected.steps,
    )
    assert [dataclasses.replace(e, loss=None) for e in report.evaluations] == [
        dataclasses.replace(e, loss=None) for e in expected.evaluations
    ]
    old, new = state(whole), state(resumed)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    train("affine", checkpoint=path)
    with pytest.raises(UsageError, match="another run") as caught:
        train("affine", dataclasses.replace(RECIPE, rate=1e-3), checkpoint=path)
    assert "recipe" in str(caught.value)
    with pytest.raises(UsageError, match="another run"):
        train("bn", checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LoadError, match="damaged"):
        train("affine", checkpoint=path)


@pytest.mark.parametrize("kind", ["affine", "prepbn"])
def test_divergence_is_caught_and_taken_back(kind: str) -> None:
    _, report = train(kind, dataclasses.replace(RECIPE, rate=30.0, transition=0.2))
    assert report.rollbacks
    first = report.rollbacks[0]
    assert first.back_to < first.step
    assert first.rate == pytest.approx(10.0)
    assert report.diverged or report.distance < report.start


def test_without_retries_nothing_is_good() -> None:
    student, report = train("affine", dataclasses.replace(RECIPE, rate=1e3, retries=0))
    assert report.diverged
    assert not report.ok
    assert "diverged" in report.stopped
    assert all(torch.isfinite(value).all() for value in state(student).values())
    assert report.distance == pytest.approx(report.start, rel=1e-5)


def test_training_that_makes_it_no_better_keeps_the_start() -> None:
    _, student = pair("affine")
    before = state(student)
    recipe = dataclasses.replace(RECIPE, steps=2, rate=0.03, evaluations=1)
    student, report = train("affine", recipe)
    assert report.ok
    assert report.start < report.evaluations[1].distance < 2 * report.start + 0.05
    assert (report.best, report.distance) == (0, report.start)
    assert "the start, which is kept" in report.stopped
    after = state(student)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_answers_are_the_same_whether_they_are_kept_or_not() -> None:
    teacher, student = pair("affine")
    module = as_module(teacher, streams(student))
    kept = Teacher(module, data(), 1, batch=64).prepare()
    fresh = Teacher(module, data(), 1, batch=64, limit=0).prepare()
    assert kept.variances == fresh.variances
    rows = torch.tensor([3, 77, 5])
    for mine, theirs in zip(kept(rows), fresh(rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(kept(rows)[0], fresh(rows)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"stages": -1},
        {"transition": 2.0},
        {"rate": 0.0},
        {"warmup": 1.5},
        {"hold_out": 0.0},
        {"steps": -1},
    ],
)
def test_bad_recipes(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        Train(**options)  # type: ignore[arg-type]
