"""The schedule of PRepBN: ``mix = 1 - t / steps`` after a warm-up of 1, t in optimizer steps, then 0.

In S stages the norms take turns, front to back: those of stage s (from 0) go from 1 to 0 in the s-th part of the
steps, so that what is behind still gets what it was trained on.

One counter per training, outside the modules: counters in the layers, as in the released code, tick on every
forward, so gradient accumulation and activation checkpointing shorten the schedule, and averaging of weights
averages them.
"""

from __future__ import annotations

from torch import nn

from normfold.errors import UsageError
from normfold.nn.batch import PRepBN
from normfold.nn.blend import Blended


class Progressive:
    """Leads every `PRepBN` and `Blended` of a model from its LayerNorm to what replaces it, linearly.

    Args:
        model: with its norms already replaced.
        steps: optimizer steps from 1 to 0. It has to end before training does; 0.8 of all steps is what trained
            stably in reports (`research/algorithms.md`, 1.2), half of them is enough from a least-squares start.
        warmup: steps at 1 before that.
        stages: in how many groups the norms take turns, in the model's order; at most as many as there are norms.

    Raises:
        UsageError: no such norm in the model, fewer than one step, or fewer steps than stages.

    Call `step` after every ``optimizer.step()``. The first step of training sees a mix of 1, step ``warmup +
    steps`` and all later ones 0 (counted from 0).
    """

    def __init__(self, model: nn.Module, steps: int, warmup: int = 0, stages: int = 1) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, (PRepBN, Blended))]
        if not self._norms:
            raise UsageError(
                "no PRepBN in the model",
                hint="replace its norms first: normfold.train.replace_norms",
            )
        if steps < 1 or warmup < 0:
            raise UsageError("a schedule of no steps", found=f"steps={steps}, warmup={warmup}")
        if not 1 <= stages <= steps:
            raise UsageError(
                "a stage takes a step at least", found=f"{stages} stages, {steps} steps"
            )
        self.steps, self.warmup, self._done = steps, warmup, 0
        self.stages = min(stages, len(self._norms))
        self._write()

    @property
    def value(self) -> float:
        """The part of LayerNorm in the next forward, of the norms that come last."""
        return self._mix(self.stages - 1)

    def _mix(self, stage: int) -> float:
        done = self.stages * (self._done - self.warmup) / self.steps - stage
        return min(1.0, max(0.0, 1 - done))

    def step(self) -> None:
        """One optimizer step has been made."""
        self._done += 1
        self._write()

    def _write(self) -> None:
        for index, norm in enumerate(self._norms):
            norm.mix.fill_(self._mix(index * self.stages // len(self._norms)))

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` of a schedule over the same model needs."""
        return {
            "done": self._done,
            "steps": self.steps,
            "warmup": self.warmup,
            "stages": self.stages,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another schedule was, with its lengths."""
        self._done, self.steps, self.warmup = state["done"], state["steps"], state["warmup"]
        self.stages = state["stages"]
        self._write()
