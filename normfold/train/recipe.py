"""How a student is trained: options and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normfold.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """Options of `distill`. Shares are of the whole.

    Attributes:
        steps: optimizer steps; four epochs, at least 300, when None.
        batch: samples per step, over all ranks.
        rate: peak learning rate of AdamW(0.9, 0.98) without decay: linear warm-up over a share ``warmup`` of
            the steps, then a cosine to zero.
        clip: largest norm of the gradient.
        temperature: of the softmax that compares outputs.
        features: weight of the streams' squared error over their variance, beside the outputs' divergence.
        logits: outputs are compared by KL(teacher || student) over their last axis, else by their squared error
            over their variance.
        transition: share of the steps over which each norm goes from the LayerNorm to what replaces it; None
            is one half for ``prepbn``, and none for the others.
        stages: in how many groups the norms take turns in that time, front to back; 0 is one at a time.
        hold_out: share of the data that is not trained on, for stopping and choosing.
        evaluations: how often the student is judged on it.
        patience: stop after so many evaluations without a better one; never when None.
        retries: how often a student that diverges is taken back, each time with a third of the rate.
        seed: of the split and the order of the samples.
    """

    steps: int | None = None
    batch: int = 64
    rate: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    temperature: float = 1.0
    features: float = 1.0
    logits: bool = True
    transition: float | None = None
    stages: int = 1
    hold_out: float = 0.1
    evaluations: int = 20
    patience: int | None = None
    retries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "rate", "clip", "temperature", "evaluations"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require("warmup", 0 <= self.warmup <= 1, "between 0 and 1")
        share = self.transition is None or 0 <= self.transition <= 1
        self._require("transition", share, "between 0 and 1")
        self._require("stages", self.stages >= 0, "at least 0")
        self._require("hold_out", 0 < self.hold_out < 1, "above 0 and below 1")
        self._require("steps", self.steps is None or self.steps > 0, "above 0")
        self._require("features", self.features >= 0, "at least 0")
        self._require("retries", self.retries >= 0, "at least 0")

    def _require(self, name: str, holds: bool, words: str) -> None:
        if not holds:
            spelled = name.replace("_", "-")
            raise UsageError(f"`{spelled}` must be {words}", found=f"{getattr(self, name)}")

    def steps_for(self, samples: int) -> int:
        """How many steps to take on so many training samples."""
        return self.steps or max(300, 4 * math.ceil(samples / self.batch))

    def transition_for(self, to: str, steps: int) -> int:
        """How many of the steps a kind of norm takes to get away from the LayerNorm."""
        usual = 0.5 if to == "prepbn" else 0.0
        return round((usual if self.transition is None else self.transition) * steps)

    def share_of_rate(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at a step (from 0)."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
