"""Moments of what goes into a norm and of what comes out, and the affine that fits it best.

    a = cov(x, y) / (var(x) + ridge * mean_c var(x)),   b = E[y] - a E[x]      per channel

Pooled over batches in float64 by Chan's rule: with d the difference of two means and n, m the two counts,
co-moments add up as M + M' + d d' n m / (n + m). The result is that of the concatenated batches, whatever their
sizes, and nothing cancels. As a warm start for a LayerNorm's replacement: a pretrained PoolFormer converted for
encrypted inference (`research/algorithms.md`, 1.8).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from normfold.errors import UsageError
from normfold.nn.statistics import world_size


@dataclass
class Moments:
    """Float64 moments per channel of ``x`` and, where given, of ``y``; all vectors are (features,)."""

    features: int
    count: int = 0
    _sums: Tensor | None = field(default=None, init=False)  # rows: E x, E y, Mxx, Mxy, Myy

    @torch.no_grad()
    def update(
        self, x: Tensor, y: Tensor | None = None, *, axis: int = -1, mask: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            x: any shape with the features along ``axis``.
            y: the same shape; without it `affine` is not defined.
            mask: bool, the shape of x without the features; True at the tokens that count.

        Raises:
            UsageError: the number of features, or the shape of y, is another.
        """
        if x.shape[axis] != self.features or (y is not None and y.shape != x.shape):
            raise UsageError(
                f"moments of {self.features} features along axis {axis} got other shapes",
                found=f"x {tuple(x.shape)}" + (f", y {tuple(y.shape)}" if y is not None else ""),
            )
        rows = [self._rows(t, axis, mask) for t in (x, x if y is None else y)]
        count = len(rows[0])
        if count == 0:
            return
        means = [r.mean(0) for r in rows]
        dx, dy = (r - mean for r, mean in zip(rows, means, strict=True))
        second = [(dx * dx).sum(0), (dx * dy).sum(0), (dy * dy).sum(0)]
        self._add(count, torch.stack([*means, *second]))

    def _rows(self, values: Tensor, axis: int, mask: Tensor | None) -> Tensor:
        values = values.detach().movedim(axis, -1)
        if mask is not None:
            values = values[mask]
        return values.reshape(-1, self.features).double()

    def _add(self, count: int, sums: Tensor) -> None:
        if self._sums is None:
            self.count, self._sums = count, sums
            return
        total = self.count + count
        dx, dy = sums[0] - self._sums[0], sums[1] - self._sums[1]
        between = torch.stack([dx * dx, dx * dy, dy * dy]) * (self.count * count / total)
        means = self._sums[:2] + torch.stack([dx, dy]) * (count / total)
        self._sums = torch.cat([means, self._sums[2:] + sums[2:] + between])
        self.count = total

    def gather(self, device: torch.device | str) -> None:
        """Pool over the ranks of torch.distributed, the same bits on each; a collective call.

        Args:
            device: where the exchange takes place, for ranks that have seen nothing.
        """
        if world_size() == 1:
            return
        own = torch.zeros(5 * self.features + 1, dtype=torch.float64, device=device)
        if self._sums is not None:
            own = torch.cat([self._sums.flatten(), self._sums.new_full((1,), self.count)])
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own)
        self.count, self._sums = 0, None
        for part in parts:
            if int(part[-1]):
                self._add(int(part[-1]), part[:-1].view(5, self.features))

    def _row(self, index: int) -> Tensor:
        if self._sums is None:
            raise UsageError("moments of no token", hint="call `update` with at least one batch")
        return self._sums[index]

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self._row(0)

    @property
    def variance(self) -> Tensor:
        """E[(x - E x)^2], without Bessel's correction."""
        return self._row(2) / self.count

    @property
    def mean_square(self) -> Tensor:
        """E[x^2]."""
        return self.variance + self.mean.square()

    def affine(self, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
        """Scale and shift of the least-squares fit y ~ scale * x + shift.

        Args:
            ridge: added to every variance, relative to their mean over channels: a channel that hardly varies gets
                a scale near zero instead of an arbitrary one.
        """
        noise = ridge * self._row(2).mean()
        denominator = self._row(2) + noise
        scale = torch.where(denominator > 0, self._row(3) / denominator, 0.0)
        return scale, self._row(1) - scale * self._row(0)

    @property
    def r_squared(self) -> Tensor:
        """The part of y's variance that an affine of x explains; 1 where y is constant."""
        both = self._row(2) * self._row(4)
        explained = torch.where(both > 0, self._row(3).square() / both, 0.0)
        return torch.where(self._row(4) > 0, explained, 1.0)
