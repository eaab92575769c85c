"""How far outputs are from the teacher's: what is trained on, and what students and norms are ranked by."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(
    mine: Tensor, theirs: Tensor, *, logits: bool = True, temperature: float = 1.0
) -> Tensor:
    """One number, differentiable, 0 where both are the same.

    Args:
        mine, theirs: student and teacher, (N, ..., C), any floating-point type.
        logits: T^2 KL(softmax(theirs / T) || softmax(mine / T)) over the last axis, mean over the others, in nats;
            else the mean squared error over the variance of ``theirs``.
        temperature: T.
    """
    mine, theirs = mine.float(), theirs.float()
    if not logits:
        return F.mse_loss(mine, theirs) / theirs.var(correction=0).clamp_min(1e-12)
    s, t = (F.log_softmax(values / temperature, -1) for values in (mine, theirs))
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()
