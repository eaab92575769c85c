"""The teacher's answers, computed once: outputs and residual streams of every sample, kept where they fit.

Streams are kept in bfloat16 (they are compared by their squared error over their variance, which 0.4 % of
rounding does not touch); what would need more memory than the limit is computed again for every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from normfold.data.samples import Data
from normfold.progress import Listener, Progress, silent

LIMIT = 4 << 30


@dataclass
class Teacher:
    """Answers of one network on one data set.

    Args:
        module: maps flat inputs to a list, outputs first, then streams.
        data: what it answers.
        outputs: how many of the list are outputs.
        batch: rows at a time.
        limit: bytes that may be kept.
    """

    module: nn.Module
    data: Data
    outputs: int
    batch: int = 64
    limit: int = LIMIT
    variances: list[float] = field(default_factory=list)
    _kept: list[Tensor] | None = None

    def prepare(self, say: Listener = silent) -> Teacher:
        """Run over all data once: measure the streams' variances, keep the answers if they fit."""
        sums: list[tuple[float, float, int]] = []
        for start in range(0, len(self.data), self.batch):
            rows = torch.arange(start, min(start + self.batch, len(self.data)))
            answers = self._run(rows)
            if not sums:
                self._kept = self._room(answers, len(rows))
                sums = [(0.0, 0.0, 0)] * (len(answers) - self.outputs)
            for index, stream in enumerate(answers[self.outputs :]):
                wide = stream.double()
                total, square, count = sums[index]
                sums[index] = (
                    total + float(wide.sum()),
                    square + float(wide.square().sum()),
                    count + wide.numel(),
                )
            for place, answer in zip(self._kept or (), answers, strict=False):
                place[rows] = answer.to(place.dtype)
            say(Progress("answers of the teacher", int(rows[-1]) + 1, len(self.data)))
        self.variances = [
            max(square / count - (total / count) ** 2, 1e-12) for total, square, count in sums
        ]
        return self

    def __call__(self, rows: Tensor) -> list[Tensor]:
        """Outputs and streams of some rows."""
        if self._kept is None:
            return self._run(rows)
        answers = [place[rows] for place in self._kept]
        return answers[: self.outputs] + [stream.float() for stream in answers[self.outputs :]]

    def _run(self, rows: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self.module(*self.data.inputs(rows)))

    def _room(self, answers: Sequence[Tensor], rows: int) -> list[Tensor] | None:
        types = [
            answer.dtype if index < self.outputs else torch.bfloat16
            for index, answer in enumerate(answers)
        ]
        sizes = [(len(self.data), *answer.shape[1:]) for answer in answers]
        per_row = all(answer.dim() and len(answer) == rows for answer in answers)
        need = sum(
            torch.Size(size).numel() * dtype.itemsize
            for size, dtype in zip(sizes, types, strict=True)
        )
        if not per_row or need > self.limit:
            return None
        return [torch.empty(size, dtype=dtype) for size, dtype in zip(sizes, types, strict=True)]
