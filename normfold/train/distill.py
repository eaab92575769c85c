"""distill: the student learns to answer as its teacher does (Hinton et al. 2015, arXiv 1503.02531).

loss = T^2 KL(softmax(t / T) || softmax(s / T)) + w mean_streams mean((s - t)^2) / var(t)

t, s: outputs or residual streams of teacher and student. A step that gives no finite number, or an evaluation
much worse than the start, takes the student back to the last good one and lowers the learning rate.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from normfold.data.samples import Data
from normfold.ir import Graph
from normfold.job import Train
from normfold.nn import KINDS, UN, Progressive
from normfold.progress import Listener, Progress, silent
from normfold.report.training import Evaluation, Rollback, TrainingReport
from normfold.train.checkpoint import load_checkpoint, save_checkpoint
from normfold.train.divergence import divergence
from normfold.train.refresh import refresh_statistics
from normfold.train.student import as_module, outputs_of, streams, take_back
from normfold.train.teacher import Teacher

_WORSE = 2.0  # an evaluation so many times worse than the start is a divergence
_ROOM = 0.05  # and at least so much worse, for students that start near zero
_REFRESH = 2048  # samples that statistics are taken from anew


def distill(
    teacher: Graph,
    student: Graph,
    data: Data,
    recipe: Train,
    *,
    seed: int = 0,
    say: Listener = silent,
) -> TrainingReport:
    """Train ``student`` in place, from where it is, and leave the best one found in it.

    Args:
        teacher: the graph that ``student`` was made of, with the same names of nodes.
        student: has tensors of its own, and trainable norms.
        data: all of it; a part is held out.
        recipe: how; its checkpoint is written at every evaluation, and resumed from if it is there.
        seed: of the split and the order of the samples.

    Returns:
        The report; look at ``diverged`` before using the student.

    Raises:
        UsageError: too few samples; the checkpoint is of another run. LoadError: it is damaged.
    """
    training, held_out = data.split(recipe.hold_out, seed)
    run = _Run(teacher, student, training, held_out, recipe, seed, say)
    run.prepare()
    run.train()
    run.finish()
    take_back(student, run.module)
    return run.report


class _Run:
    """One distillation: the module that is trained, what it is compared with, and what was found so far."""

    def __init__(
        self,
        teacher: Graph,
        student: Graph,
        training: Data,
        held_out: Data,
        recipe: Train,
        seed: int,
        say: Listener,
    ) -> None:
        self.recipe, self.training, self.held_out = recipe, training, held_out
        self.seed, self.say = seed, say
        self.checkpoint = recipe.checkpoint
        self.steps = recipe.steps_for(len(training))
        self.report = TrainingReport(
            recipe.to, training.source, samples=len(training), held_out=len(held_out)
        )
        self.outputs, taps = outputs_of(student), streams(student)
        transition = recipe.transition_for(self.steps, KINDS[recipe.to].transition)
        self.module = as_module(student, taps, blended=transition > 0)
        reference = as_module(teacher, taps)
        self.answers = Teacher(reference, training, self.outputs, recipe.batch_size)
        self.expected = Teacher(reference, held_out, self.outputs, recipe.batch_size)
        for part in self.module.modules():
            if isinstance(part, UN):  # its own warm-up is for training from scratch
                part.warmup = min(part.warmup, self.steps // 10)
        self.schedule = None
        if transition:
            stages = recipe.stages or len(student.trainable)
            self.schedule = Progressive(self.module, transition, stages=min(stages, transition))
        self.optimizer = torch.optim.AdamW(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=recipe.rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        self.wrapped: nn.Module = self.module
        self.rank, self.world = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if self.world > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(self.module, broadcast_buffers=False)
        self.step, self.first, self.factor, self.spent = 0, 0, 1.0, 0.0
        self.losses: list[float] = []
        self.transition = transition
        self.best: dict[str, Any] = {}
        self.good: dict[str, Any] = {}

    def prepare(self) -> None:
        """The teacher's answers; then the start, or where an interrupted run was."""
        self.answers.prepare(self.say)
        self.expected.prepare(self.say)
        self.started = time.perf_counter()
        saved = None if self.checkpoint is None else load_checkpoint(self.checkpoint, self._key())
        if saved is not None:
            self._resume(saved)
            return
        self.report.start = self._distance()
        self.report.evaluations.append(Evaluation(0, None, self.report.start, 0.0))
        self.good = self._snapshot()
        self.best = {"step": 0, "distance": self.report.start, "state": self.good["state"]}

    def train(self) -> None:
        """All steps, with an evaluation after every share of them."""
        every = max(1, self.steps // self.recipe.evaluations)
        while self.step < self.steps and not self.report.diverged and not self.report.stopped:
            why = self._advance()
            if why is None and (self.step % every == 0 or self.step == self.steps):
                why = self._evaluate()
            if why is not None:
                self._roll_back(why)

    def finish(self) -> None:
        """The best student, with its statistics taken anew where that brings it nearer to the teacher."""
        report = self.report
        report.steps = self.step
        self._restore_weights(self.best["state"])
        report.best, report.distance = self.best["step"], self.best["distance"]
        if not report.diverged:
            self._refresh()
            if not report.best:
                report.stopped = "no evaluation was better than the start, which is kept"
            report.stopped = report.stopped or "all steps done"
        self.module.eval()
        report.seconds = self.spent + time.perf_counter() - self.started

    def _advance(self) -> str | None:
        """One optimizer step; why it failed, if it did."""
        self.module.train()
        rows = self._rows(self.step)[self.rank :: self.world]
        rate = self.recipe.rate * self.factor * self.recipe.share_of_rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _attention(self.module):
            answers = list(self.wrapped(*self.training.inputs(rows)))
            loss = self._loss(answers, self.answers(rows))
            self.optimizer.zero_grad()
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip)
        value = float(loss.detach())
        if self._anywhere(not (math.isfinite(value) and bool(torch.isfinite(norm)))):
            return "the loss or its gradient is not finite"
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        self.losses.append(value)
        self.say(Progress("distilling", self.step, self.steps, self._line(value, rate)))
        return None

    def _evaluate(self) -> str | None:
        """Judge the student on the held-out samples, keep it if it is the best; why it is none, if so."""
        distance, report = self._distance(), self.report
        mean = sum(self.losses) / max(1, len(self.losses))
        self.losses = []
        report.evaluations.append(
            Evaluation(self.step, mean, distance, self.optimizer.param_groups[0]["lr"])
        )
        if not distance <= _WORSE * report.start + _ROOM:
            return (
                f"the distance from the teacher is {distance:.3g}, at the start {report.start:.3g}"
            )
        # it is judged as what it is going to be, not as what is trained
        changing = self.schedule is not None and self.schedule.value > 0
        if distance < self.best["distance"] and not changing:
            state = _copy(self.module.state_dict())
            self.best = {"step": self.step, "distance": distance, "state": state}
        self.good = self._snapshot()
        since = [e for e in report.evaluations if e.step > max(self.best["step"], self.transition)]
        if self.recipe.patience is not None and len(since) >= self.recipe.patience:
            report.stopped = f"no better student in {len(since)} evaluations"
        if self.checkpoint is not None and self.rank == 0:
            save_checkpoint(self.checkpoint, self._key(), self._saved())
        return None

    def _roll_back(self, why: str) -> None:
        at = self.step
        if len(self.report.rollbacks) >= self.recipe.retries:
            self.report.diverged, self.report.stopped = True, f"diverged: {why}"
            return
        self.factor /= 3.0
        factor = self.factor
        self._go_to(self.good)
        self.factor = factor
        self.report.rollbacks.append(Rollback(at, why, self.step, self.recipe.rate * factor))
        text = f"step {at}: {why}; rate {self.recipe.rate * factor:.1e} from here"
        self.say(Progress("distilling", self.step, self.steps, text))

    def _loss(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        loss = self._divergence(mine[: self.outputs], theirs[: self.outputs])
        pairs = zip(mine[self.outputs :], theirs[self.outputs :], strict=True)
        parts = [
            F.mse_loss(s.float(), t.float()) / variance
            for (s, t), variance in zip(pairs, self.answers.variances, strict=True)
        ]
        if parts and self.recipe.features:
            loss = loss + self.recipe.features * torch.stack(parts).mean()
        return loss

    def _divergence(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        logits, temperature = self.recipe.logits, self.recipe.temperature
        parts = [
            divergence(s, t, logits=logits, temperature=temperature)
            for s, t in zip(mine, theirs, strict=True)
            if t.is_floating_point()
        ]
        return torch.stack(parts).sum()

    def _distance(self) -> float:
        """Divergence of the outputs on the held-out samples, in eval mode."""
        with warnings.catch_warnings():  # a PRepBN under way is judged as what it is going to be
            warnings.simplefilter("ignore", UserWarning)
            self.module.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self.held_out), self.recipe.batch_size):
                rows = torch.arange(start, min(start + self.recipe.batch_size, len(self.held_out)))
                answers = self.module(*self.held_out.inputs(rows))[: self.outputs]
                part = self._divergence(answers, self.expected(rows)[: self.outputs])
                total += float(part) * len(rows)
        return total / len(self.held_out)

    def _refresh(self) -> None:
        """Statistics of the finished weights, kept if they are better than the running ones."""
        before = _copy(self.module.state_dict())
        rows = torch.arange(min(_REFRESH, len(self.training))).split(self.recipe.batch_size)
        batches = [self.training.inputs(part[self.rank :: self.world]) for part in rows]
        if not refresh_statistics(self.module, batches):
            return
        distance = self._distance()
        if distance < self.report.distance:
            self.report.distance, self.report.refreshed = distance, True
        else:
            self._restore_weights(before)

    def _rows(self, step: int) -> Tensor:
        """The samples of a step: every epoch in an order of its own that depends on the seed alone."""
        size = min(self.recipe.batch_size, len(self.training))
        batches = len(self.training) // size
        epoch, place = divmod(step, batches)
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.training), generator=random)
        return order[place * size : (place + 1) * size]

    def _anywhere(self, bad: bool) -> bool:
        """True if any rank says so: all must turn back together."""
        if self.world == 1:
            return bad
        flag = torch.tensor(float(bad), device=next(self.module.parameters()).device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "factor": self.factor,
            "state": _copy(self.module.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def _go_to(self, snapshot: dict[str, Any]) -> None:
        self._restore_weights(snapshot["state"])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
        if self.schedule is not None:
            self.schedule.load_state_dict(snapshot["schedule"])
        self.step, self.factor, self.losses = snapshot["step"], snapshot["factor"], []

    def _restore_weights(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)

    def _saved(self) -> dict[str, Any]:
        spent = self.spent + time.perf_counter() - self.started
        return {"good": self.good, "best": self.best, "report": self.report, "spent": spent}

    def _resume(self, saved: dict[str, Any]) -> None:
        self.good, self.best, self.spent = saved["good"], saved["best"], saved["spent"]
        self.report = saved["report"]
        self._go_to(self.good)
        self.first = self.step
        self.say(Progress("distilling", self.step, self.steps, "resumed"))

    def _key(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be of this run."""
        shapes = {name: tuple(value.shape) for name, value in self.module.state_dict().items()}
        return {
            "recipe": replace(self.recipe, checkpoint=None),
            "seed": self.seed,
            "steps": self.steps,
            "data": self.training.fingerprint(),
            "to": self.report.to,
            "tensors": shapes,
        }

    def _line(self, loss: float, rate: float) -> str:
        spent = time.perf_counter() - self.started
        made = max(1, self.step - self.first)  # in this session
        left = spent / made * (self.steps - self.step)
        return f"{left:.0f} s left: loss {loss:.4f}, rate {rate:.1e}"


def _attention(module: nn.Module) -> AbstractContextManager[Any]:
    """On a CPU the flash kernel's backward pass takes 3 to 10 times plain attention's time in half precision."""
    parameter = next(iter(module.parameters()))
    slow = parameter.device.type == "cpu" and parameter.dtype in (torch.float16, torch.bfloat16)
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
