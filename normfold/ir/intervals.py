"""Value ranges and means of tensors, as far as they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from normfold.ir import facts
from normfold.ir.facts import Fact


@dataclass(frozen=True)
class Interval(Fact):
    """Smallest and largest value of one tensor, over all samples, positions and channels.

    Not kept beside a file: every use of ranges finds them again, and one that lay there would stand in where
    nothing was found.
    """

    kind_name: ClassVar[str] = "range"
    low: float
    high: float

    @property
    def finite(self) -> bool:
        """False for the values of a mask, or of the logarithm of 0."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def union(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def within(self, bounds: Interval) -> Interval:
        """The part inside ``bounds``."""
        low = min(max(self.low, bounds.low), bounds.high)
        return Interval(low, min(max(self.high, bounds.low), bounds.high))


@dataclass(frozen=True)
class _PerChannel(Fact):
    """One number per channel of the float network, whatever the graph computes now: (C,), float64.

    Not kept beside a file: they belong to one set of samples, or one rounding of the weights.
    """

    of_numbers: ClassVar[bool] = False
    values: Tensor


class FloatMean(_PerChannel):
    """The mean of the tensor."""

    kind_name: ClassVar[str] = "float-mean"


class ReadMean(_PerChannel):
    """The mean of what a linear op reads."""

    kind_name: ClassVar[str] = "read-mean"


class MeanShift(_PerChannel):
    """What rounding its weight adds to the mean of a linear op."""

    kind_name: ClassVar[str] = "mean-shift"


def _tensor(node: fx.Node, kind: type[_PerChannel]) -> Tensor | None:
    found = facts.get(node, kind)
    return found.values if found is not None else None


EVERYTHING = Interval(float("-inf"), float("inf"))


def set_range(node: fx.Node, found: Interval) -> None:
    """Set the value range of the tensor of ``node``; of one with infinite values none is known, as no grid holds
    them."""
    if found.finite:
        facts.put(node, found)
    else:
        facts.drop(node, Interval)


def range_of(node: fx.Node) -> Interval | None:
    """The value range of the tensor of ``node``, if it was measured or derived."""
    return facts.get(node, Interval)


def measured_mean(node: fx.Node) -> Tensor | None:
    """The mean per channel of the tensor of ``node`` on the samples, where it was measured."""
    return _tensor(node, FloatMean)


def note_mean(node: fx.Node, mean: Tensor) -> None:
    """Set the mean per output channel, (C,) in float64, of a linear op of the float network."""
    facts.put(node, FloatMean(mean))


def read_mean(node: fx.Node) -> Tensor | None:
    """The mean per input channel of a linear op, where the norms' statistics give it."""
    return _tensor(node, ReadMean)


def note_read_mean(node: fx.Node, mean: Tensor) -> None:
    """Set the mean per input channel, (C,) in float64, of a linear op."""
    facts.put(node, ReadMean(mean))


def mean_shift(node: fx.Node) -> Tensor | None:
    """The shift of a linear op's mean that rounding its weight causes, where it is known."""
    return _tensor(node, MeanShift)


def note_mean_shift(node: fx.Node, shift: Tensor) -> None:
    """Set the shift per output channel, (C,) in float64, that a rounded weight causes."""
    facts.put(node, MeanShift(shift))
