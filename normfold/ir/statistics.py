"""Statistics of the training data that a network stores: means and deviations around its BatchNorms.

A BatchNorm's running statistics describe its input, its gain and bias describe its output. Both are stored with
the tensor, not with the norm, so that they outlive it: a rewrite that stores ``a x + b`` instead of ``x`` updates
them (`Statistics.moved`), so that folding and quantising commute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import facts
from normfold.ir.facts import Fact
from normfold.ir.graph import shape_of


@dataclass(frozen=True)
class Statistics(Fact):
    """Mean and standard deviation of one tensor over samples and positions, per channel, in float64.

    Attributes:
        site: path of the norm that they come from.
        dim: the channel axis of the tensor.
        mean, std: (C,); NaN where nothing is known of a channel.
    """

    kind_name: ClassVar[str] = "statistics"
    kept: ClassVar[bool] = True
    site: str
    dim: int
    mean: Tensor
    std: Tensor

    def fits(self, node: fx.Node) -> bool:
        sizes, vector = shape_of(node), self.mean.shape
        if not -len(sizes) <= self.dim < len(sizes) or vector != self.std.shape:
            return False
        if (
            bool((self.std < 0).any())
            or bool(self.mean.isinf().any())
            or bool(self.std.isinf().any())
        ):
            return False  # no deviation of anything; NaN says that nothing is known
        in_float64 = self.mean.dtype == self.std.dtype == torch.float64
        return in_float64 and tuple(vector) == (sizes[self.dim],)

    def moved(self, scale: Tensor | None, shift: Tensor | None) -> Statistics:
        """Those of ``x * scale + shift``, (C,) each."""
        mean, std = self.mean, self.std
        if scale is not None:
            mean, std = mean * scale, std * scale.abs()
        return replace(self, mean=mean if shift is None else mean + shift, std=std)

    def before(self, scale: Tensor | None, shift: Tensor | None) -> Statistics:
        """Those of ``x``, where these are of ``x * scale + shift``; unknown where the scale is zero."""
        mean = self.mean if shift is None else self.mean - shift
        if scale is None:
            return replace(self, mean=mean)
        factor = scale.masked_fill(scale == 0, float("nan")).reciprocal()
        return replace(self, mean=mean * factor, std=self.std * factor.abs())


def set_statistics(node: fx.Node, found: Statistics | None) -> None:
    """Set or clear (None) the statistics of the tensor of ``node``."""
    if found is None:
        facts.drop(node, Statistics)
    else:
        facts.put(node, found)


def statistics_of(node: fx.Node) -> Statistics | None:
    """The statistics of the tensor of ``node``, if a norm stored them and they fit its shape."""
    found = facts.get(node, Statistics)
    return found if found is not None and found.fits(node) else None
