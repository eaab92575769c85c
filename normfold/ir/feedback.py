"""Rounding with feedback: what one input's weights lose, the weights behind it make up for.

With H = E[x x'] of what a product reads, the rounding error E of a weight row costs E H E'. Inputs are rounded in
order; the error e of input j is spread over the inputs behind it by the row j of the Cholesky factor U of H^-1::

    W_k  <-  W_k - e U_jk / U_jj        k > j

which is the least-squares answer of the weights that are still free (Frantar et al. 2022, "GPTQ", arXiv
2210.17323; written from the formulas). A block's scale is chosen when its first input is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normfold.ir.grids import limits, scale_of

_DAMPING = 0.05  # of the mean of H's diagonal: samples are few, and need not be the user's
_CHUNK = 128  # inputs between two updates of all that is behind them


def fed_back(weight: Tensor, second: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """The integers of matrices on grids, and their scales.

    Args:
        weight: (groups, outputs, inputs), any floats.
        second: E[x x'], (groups, inputs, inputs), or a multiple of it.
        bits: 2 to 8.
        block: inputs that share a scale; 0: all.

    Returns:
        Integers (groups, outputs, inputs) in int8, and scales (groups, outputs, blocks) in float32.
    """
    groups, outputs, count = weight.shape
    low, high = limits(bits, block)
    second = second.double()
    importance = second.diagonal(dim1=-2, dim2=-1)
    damping = _DAMPING * importance.mean(-1).clamp_min(1e-30)
    second = second + damping[:, None, None] * torch.eye(count)
    importance = (importance + damping[:, None]).float()[:, None, :].expand_as(weight)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    free = weight.float().clone()
    steps = torch.empty(weight.shape, dtype=torch.int8)
    scales = []
    chunk = max(_CHUNK, block)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        errors = torch.zeros(groups, outputs, stop - start)
        for at in range(start, stop):
            if at % (block or count) == 0:
                piece = slice(at, min(at + (block or count), count))
                rows = free[:, :, piece].flatten(0, 1)
                how = (1 if block else 0, bits, block, True)
                found = scale_of(rows, *how, importance=importance[:, :, piece].flatten(0, 1))
                scale = found.reshape(groups, outputs, 1)
                scales.append(scale)
            column = free[:, :, at : at + 1]
            q = (column / scale).round().clamp(low, high)
            steps[:, :, at : at + 1] = q.to(torch.int8)
            error = (column - q * scale) / factor[:, at, at, None, None]
            errors[:, :, at - start] = error[:, :, 0]
            free[:, :, at:stop] -= error * factor[:, at : at + 1, at:stop]
        free[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return steps, torch.cat(scales, 2)
