"""The schedule of PRepBN: ``mix = 1 - t / steps`` after a warm-up of 1, t in optimizer steps, then 0.

One counter per training, outside the modules: counters in the layers, as in the released code, tick on every
forward, so gradient accumulation and activation checkpointing shorten the schedule, and averaging of weights
averages them.
"""

from __future__ import annotations

from torch import nn

from normfold.errors import UsageError
from normfold.nn.batch import PRepBN


class Progressive:
    """Leads every `PRepBN` of a model from LayerNorm to RepBN, linearly.

    Args:
        model: with its norms already replaced.
        steps: optimizer steps from 1 to 0. It has to end before training does; 0.8 of all steps is what trained
            stably in reports (`research/algorithms.md`, 1.2), half of them is enough from a least-squares start.
        warmup: steps at 1 before that.

    Raises:
        UsageError: no PRepBN in the model, or fewer than one step.

    Call `step` after every ``optimizer.step()``. The first step of training sees a mix of 1, step ``warmup +
    steps`` and all later ones 0 (counted from 0).
    """

    def __init__(self, model: nn.Module, steps: int, warmup: int = 0) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, PRepBN)]
        if not self._norms:
            raise UsageError(
                "no PRepBN in the model",
                hint="replace its norms first: normfold.train.replace_norms",
            )
        if steps < 1 or warmup < 0:
            raise UsageError("a schedule of no steps", found=f"steps={steps}, warmup={warmup}")
        self.steps, self.warmup, self._done = steps, warmup, 0
        self._write()

    @property
    def value(self) -> float:
        """The part of LayerNorm in the next forward."""
        return min(1.0, max(0.0, 1 - (self._done - self.warmup) / self.steps))

    def step(self) -> None:
        """One optimizer step has been made."""
        self._done += 1
        self._write()

    def _write(self) -> None:
        for norm in self._norms:
            norm.mix.fill_(self.value)

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` of a schedule over the same model needs."""
        return {"done": self._done, "steps": self.steps, "warmup": self.warmup}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another schedule was, with its lengths."""
        self._done, self.steps, self.warmup = state["done"], state["steps"], state["warmup"]
        self._write()
