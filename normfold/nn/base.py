"""What all trainable norms share: in eval mode ``y = x * scale + shift`` along one axis, with constants.

``scale, shift = norm.affine()`` are plain expressions of parameters and frozen statistics. A captured network
holds just them, so that every fold of the compiler applies to any norm of this package. In training mode a norm
measures its input over the valid tokens of all ranks, each real batch once, whatever checkpointing recomputes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn.moments import Moments
from normfold.nn.recompute import Memory, recomputing
from normfold.nn.statistics import wide, world_size


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """View a ``(C,)`` vector so that it broadcasts along ``axis`` of a tensor of ``rank`` axes."""
    behind = rank - 1 - axis % rank
    return vector.reshape((-1,) + (1,) * behind) if behind else vector


class OfflineNorm(nn.Module):
    """A norm that is an affine in eval mode; subclasses say how it is trained.

    Args:
        features: C, the length of ``axis``.
        eps: added to variances.
        axis: where the features lie: -1 for tokens (..., C), 1 for channels-first (N, C, ...).
        momentum: weight of a new batch in the running statistics, as in torch.
        dtype: of the parameters; statistics are float32 at least.

    ``mask`` (bool, the shape of x without its features, True at valid tokens) is set by `valid_tokens`.
    Statistics leave padded tokens out; all positions are normalised alike, with non-finite values at padded
    ones taken for 0. ``replaced``: gain, bias and eps of the LayerNorm that this norm stands for, if known.
    """

    # `--to KIND`; None for a base class. ``preset`` is off where it is for training loops of the user's own only
    kind: ClassVar[str | None] = None
    preset: ClassVar[bool] = True
    # share of the training in which it goes from the LayerNorm to what replaces it
    transition: ClassVar[float] = 0.0

    mask: Tensor | None
    recorder: Moments | None
    replaced: tuple[Tensor, Tensor, float] | None

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        axis: int = -1,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features, self.eps, self.axis, self.momentum = features, eps, axis, momentum
        self.mask = None
        self.recorder = None
        self.replaced = None
        self._memory: Memory[tuple[Tensor | None, Any]] = Memory()

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of eval mode, (C,) each, differentiable, float32 or wider."""
        raise NotImplementedError

    def start(self, scale: Tensor, shift: Tensor, mean: Tensor, mean_square: Tensor) -> None:
        """Make eval mode exactly ``x * scale + shift``, in place.

        Args:
            scale, shift: (C,), what `affine` returns from now on.
            mean, mean_square: (C,), E[x] and E[x^2] of the norm's input: its running statistics from now on.
        """
        raise NotImplementedError

    def adopt(self, moments: Moments) -> None:
        """Take pooled moments of the input as the running statistics, parameters untouched."""
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        """What is computed online, in both modes, in front of the affine: nothing."""
        return x

    def normalise(self, x: Tensor, mask: Tensor | None, seen: Any) -> tuple[Tensor, Any]:
        """Training mode.

        Args:
            x: (..., C), prepared, the features last, in the caller's dtype.
            mask: (...), or None.
            seen: what the first run returned, when this is its recomputation.

        Returns:
            y, (..., C) in any dtype, and what a recomputation needs to see again besides the mask.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.training_forward(x) if self.training else self.evaluate(x)

    def evaluate(self, x: Tensor) -> Tensor:
        """Eval mode: one multiplication and one addition after `prepare`."""
        x = self.prepare(x)
        scale, shift = self.affine()
        own = next(self.parameters()).dtype
        if (
            own == x.dtype
        ):  # else autocast narrowed x alone, and the constants stay as wide as they are
            scale, shift = scale.to(x.dtype), shift.to(x.dtype)
        y = x * along(scale, self.axis, x.dim()) + along(shift, self.axis, x.dim())
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def training_forward(self, x: Tensor) -> Tensor:
        """Statistics over the batch, each batch counted once."""
        if recomputing():
            mask, seen = self._memory.find(x) or (None, None)
        else:
            mask, seen = self.mask, None
            self._check(x, mask)
        valid = x
        if mask is not None:
            finite = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            valid = torch.where(mask.unsqueeze(self.axis), x, finite)
        y, seen = self.normalise(self.prepare(valid).movedim(self.axis, -1), mask, seen)
        # without masks and without state there is nothing to see again
        to_keep = mask is not None or seen is not None or len(self._memory) > 0
        if to_keep and not torch.compiler.is_compiling() and not recomputing():
            self._memory.keep(x, (mask, seen))
        return y.movedim(-1, self.axis).to(x.dtype)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        where = f"{type(self).__name__}({self.features}, axis={self.axis})"
        axis = self.axis % x.dim()
        size, tokens = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
        if size != self.features:
            raise UsageError(
                f"the input has {size} features along axis {self.axis}, not {self.features}",
                where=where,
            )
        if mask is not None and mask.shape != tokens:
            raise UsageError(
                "the mask does not fit the input: it has the shape of x without the features",
                where=where,
                found=f"mask {tuple(mask.shape)} for tokens {tuple(tokens)}",
            )
        if tokens.numel() < 2 and world_size() == 1:
            raise UsageError(
                "statistics of a batch need two tokens at least",
                where=where,
                found=f"{tokens.numel()}",
                hint="drop the last, smaller batch, or call `eval()`",
            )

    def extra_repr(self) -> str:
        return f"{self.features}, eps={self.eps}, axis={self.axis}, momentum={self.momentum}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mask": None, "recorder": None, "_memory": Memory()}


def offline_norms(model: nn.Module) -> dict[str, OfflineNorm]:
    """The norms of this package in a model by their path, shared ones once."""
    return {path: m for path, m in model.named_modules() if isinstance(m, OfflineNorm)}


@contextmanager
def valid_tokens(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within this context every norm of ``model`` takes its statistics over valid tokens only.

    Args:
        mask: bool, the shape of the norms' input without the features, True at real tokens.

    A backward with recomputation may run outside, except under torch.compile. Waits for the device once.

    Raises:
        UsageError: not a bool tensor, or fewer than two valid tokens on the only rank.
    """
    if mask.dtype != torch.bool:
        raise UsageError("the mask of valid tokens is not a bool tensor", found=str(mask.dtype))
    norms = list(offline_norms(model).values())
    trains = any(norm.training for norm in norms)
    if trains and world_size() == 1 and int(mask.sum()) < 2:
        raise UsageError("statistics of a batch need two valid tokens at least")
    before = [norm.mask for norm in norms]
    try:
        for norm in norms:
            norm.mask = mask
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.mask = old


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Moments]]:
    """Within this context norms in training mode collect float64 moments and change no statistics.

    They normalise by the statistics of each batch. The moments are of what the affine reads
    (`OfflineNorm.prepare`).

    Yields:
        By path of the norm; a norm that was never called has a count of 0.
    """
    norms = offline_norms(model)
    try:
        for norm in norms.values():
            norm.recorder = Moments(norm.features)
        yield {path: norm.recorder for path, norm in norms.items() if norm.recorder is not None}
    finally:
        for norm in norms.values():
            norm.recorder = None


def statistics_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Of running statistics beside parameters of ``dtype``: float32 or wider."""
    return wide(torch.empty(0, dtype=dtype)).dtype
