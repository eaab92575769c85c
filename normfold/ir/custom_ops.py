"""Two composite ops for captured graphs, which a re-export expands (the ops of quantised graphs: `integer_ops`).

``normfold::channel_affine(x, scale?, shift?, dim)`` is ``x * scale + shift`` along one axis of ``x``.
``normfold::channel_pad(x, pad, value, dim)`` is ``F.pad`` whose constant differs per channel.
Both are differentiable, run on any device, and never survive into an exported file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("normfold", "DEF")
_LIBRARY.define("channel_affine(Tensor x, Tensor? scale, Tensor? shift, int dim) -> Tensor")
_LIBRARY.define("channel_pad(Tensor x, SymInt[] pad, Tensor value, int dim) -> Tensor")


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """View a ``(C,)`` vector so that it broadcasts along ``dim`` of a tensor of ``rank`` axes."""
    return vector.reshape((-1,) + (1,) * (rank - 1 - dim % rank))


def _channel_affine(x: Tensor, scale: Tensor | None, shift: Tensor | None, dim: int) -> Tensor:
    if scale is not None:
        x = x * along(scale.to(x.dtype), dim, x.dim())
    if shift is not None:
        x = x + along(shift.to(x.dtype), dim, x.dim())
    return x


def _channel_pad(x: Tensor, pad: Sequence[int], value: Tensor, dim: int) -> Tensor:
    filler = along(value.to(x.dtype), dim, x.dim())
    for index, (before, after) in enumerate(zip(pad[0::2], pad[1::2], strict=True)):
        axis = x.dim() - 1 - index
        shape = list(x.shape)

        def strip(width: int, shape: list[int] = shape, axis: int = axis) -> list[Tensor]:
            return [filler.expand([*shape[:axis], width, *shape[axis + 1 :]])] if width else []

        x = torch.cat([*strip(before), x, *strip(after)], axis)
    return x


_LIBRARY.impl("channel_affine", _channel_affine, "CompositeImplicitAutograd")
_LIBRARY.impl("channel_pad", _channel_pad, "CompositeImplicitAutograd")

channel_affine = torch.ops.normfold.channel_affine.default
channel_pad = torch.ops.normfold.channel_pad.default
