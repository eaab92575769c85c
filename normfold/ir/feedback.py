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
    """The integers of a matrix on a grid, and its scales.

    Args:
        weight: (outputs, inputs), any floats.
        second: E[x x'], (inputs, inputs), or a multiple of it.
        bits: 2 to 8.
        block: inputs that share a scale.

    Returns:
        Integers (outputs, inputs) in int8, and scales (outputs, blocks) in float32.
    """
    count, (low, high) = weight.shape[1], limits(bits, block)
    second = second.double()
    second = second + _DAMPING * max(float(second.diagonal().mean()), 1e-30) * torch.eye(count)
    importance = second.diagonal().float()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    free = weight.float().clone()
    steps = torch.empty(weight.shape, dtype=torch.int8)
    scales = []
    chunk = max(_CHUNK, block)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        errors = torch.zeros(len(free), stop - start)
        for at in range(start, stop):
            if at % block == 0:
                piece = slice(at, min(at + block, stop))
                of_block = importance[piece]
                scale = scale_of(free[:, piece], 1, bits, block, True, importance=of_block)
                scales.append(scale)
            column = free[:, at : at + 1]
            q = (column / scale).round().clamp(low, high)
            steps[:, at : at + 1] = q.to(torch.int8)
            error = (column - q * scale) / factor[at, at]
            errors[:, at - start] = error[:, 0]
            free[:, at:stop] -= error * factor[at : at + 1, at:stop]
        free[:, stop:] -= errors @ factor[start:stop, stop:]
    return steps, torch.cat(scales, 1)
