"""Means over tokens: ``sum_t v[t] / n`` with t over the valid tokens of all ranks, n their number.

Everything that a norm of this package measures is such a mean: of x, of (x - mean)^2, of x^2 and, in
backward, of g * z. Ranks may hold different numbers of tokens, none included. Second moments about a mean are
taken in two passes, because E[x^2] - E[x]^2 loses everything in float32 where the mean is large.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or wider; itself, with no op in a traced graph, where it is already."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def world_size() -> int:
    """How many ranks share their statistics; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _all_reduce(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values


def over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, on every rank; not differentiable."""
    if world_size() == 1:
        return values
    total: Tensor = _all_reduce(values)
    return total


def token_sum(values: Tensor) -> Tensor:
    """(..., C) to (C,), on this rank."""
    return values.sum(tuple(range(values.dim() - 1)))


@torch.no_grad()
def token_mean(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
    """The mean over tokens and their number, without gradients.

    Args:
        values: (..., C), float32 or wider.
        mask: (...), True at valid tokens; None when all are.

    Returns:
        (C,), and n over all ranks: a tensor where only the device knows it.
    """
    count: Tensor | int = values.numel() // values.shape[-1]
    if mask is not None:
        values, count = torch.where(mask.unsqueeze(-1), values, 0.0), mask.sum()
    total = token_sum(values)
    if isinstance(count, Tensor):
        count = count.to(total.dtype)  # a quotient of integers would be float32
    if world_size() > 1:
        both = over_ranks(torch.cat([total, total.new_zeros(1) + count]))
        total, count = both[:-1], both[-1]
    return total / count, count
