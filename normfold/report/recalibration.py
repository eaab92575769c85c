"""What new statistics of BatchNorms are, and how far they are from those of the training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Literal

_FEW = 64  # samples: a mean is known to an eighth of a deviation between samples
_FAR = 1.0  # deviations of the source that means may be away
_WIDE = 2.0  # times that deviations may be wider or narrower
_NAMED = 3


@dataclass(frozen=True)
class NormShift:
    """How far the samples are from what a norm was trained on; medians over its channels.

    Attributes:
        values: of each channel in all samples together.
        shift: of the mean, in deviations of the source.
        ratio: of the deviation to that of the source.
    """

    path: str
    values: int
    shift: float
    ratio: float

    @property
    def far(self) -> bool:
        """True where the samples are hardly what the network was trained on."""
        return self.shift > _FAR or not 1 / _WIDE <= self.ratio <= _WIDE


@dataclass(frozen=True)
class RecalibrationReport:
    """A recalibration.

    Attributes:
        method: ``adabn``, ``alpha`` or ``prior``.
        share: of the source in the new statistics.
        part: what of them is new.
        samples: that they were measured on.
        norms: in the order in which they run.
        kept: paths of norms that are called several times, and keep their statistics.
    """

    method: str
    share: float
    part: Literal["both", "mean", "variance"]
    samples: int
    norms: tuple[NormShift, ...]
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: ``adabn on 256 samples: 21 norms, ...``."""
        shift = median(item.shift for item in self.norms)
        ratio = median(item.ratio for item in self.norms)
        own = f", {self.share:.0%} of their own" if self.share else ""
        part = "" if self.part == "both" else f", the {self.part} alone"
        return (
            f"{self.method} on {self.samples} samples{own}{part}: {len(self.norms)} norms, means {shift:.2g} "
            f"deviations away, deviations {ratio:.2g} times as wide (medians)"
        )

    def notes(self) -> list[str]:
        """What to be wary of."""
        found = []
        if self.samples < _FEW and self.share < 1 / 2:
            found.append(
                f"recalibrated on {self.samples} samples: means are known to about "
                f"{1 / math.sqrt(self.samples):.2f} of their deviation between samples; more samples, or "
                "`--recalibrate prior`, which trusts few of them less"
            )
        far = [item for item in self.norms if item.far]
        if 2 * len(far) > len(self.norms):
            worst = max(far, key=lambda item: item.shift)
            found.append(
                f"the samples are far from what the network was trained on: {len(far)} of {len(self.norms)} "
                f"norms, `{worst.path}` by {worst.shift:.2g} deviations (its own are {worst.ratio:.2g} times the "
                "source's): are they of the same kind, normalised in the same way?"
            )
        if self.kept:
            names = ", ".join(f"`{path}`" for path in self.kept[:_NAMED])
            more = f" and {len(self.kept) - _NAMED} more" if len(self.kept) > _NAMED else ""
            found.append(f"not recalibrated, because they are called several times: {names}{more}")
        return found
