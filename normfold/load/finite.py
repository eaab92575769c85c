"""Weights that are no numbers, as a training that diverged leaves them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def spoilt(module: nn.Module, besides: Collection[int] = ()) -> list[str]:
    """A note that names the first weight that holds NaN or infinity, and counts them; nothing where none does.

    Buffers may hold infinity, as masks do.

    Args:
        besides: ids of tensors that are not looked at.
    """
    named: list[tuple[str, Tensor, bool]] = [
        (name, value, False) for name, value in module.named_parameters()
    ]
    named += [(name, value, True) for name, value in module.named_buffers()]
    found = [
        (name, value)
        for name, value, infinite in named
        if id(value) not in besides and _spoilt(value, infinite)
    ]
    if not found:
        return []
    name, value = found[0]
    count = int((~torch.isfinite(value)).sum())
    return [
        f"NaN or infinity in {len(found)} of {len(named)} weights, first in `{name}` ({count} of its "
        f"{value.numel()} numbers): is it the checkpoint of a training that diverged?"
    ]


@torch.no_grad()
def _spoilt(value: Tensor, infinite: bool) -> bool:
    """Whether a tensor holds NaN, or infinity that it may not hold; without a copy of its size."""
    known = not is_lazy(value) and value.layout is torch.strided and value.device.type != "meta"
    if not known or value.dtype not in _FLOATS or value.numel() == 0:
        return False
    ends = torch.stack(torch.aminmax(value))
    return bool(ends.isnan().any() if infinite else not ends.isfinite().all())
