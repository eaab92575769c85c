"""Running statistics again, with the parameters as they are: exactly those of all batches put together.

    mean = sum_t x_t / n,   var = sum_t (x_t - mean)^2 / n       over all valid tokens of all batches and ranks

After training, the running statistics are averages over weights that have changed since, measured with dropout
and drop path on. SLAB runs 10 more epochs of moving averages for that (arXiv 2405.11582, section 5.1); one pass
in float64 over a hundred batches does it here, since moments add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from normfold.errors import UsageError
from normfold.nn import OfflineNorm, offline_norms, recording
from normfold.train.batches import Forward, modes, run


def refresh_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Forward | None = None
) -> list[str]:
    """Measure the input of every norm of normfold anew and write its running statistics, in place.

    Norms run in training mode: each batch is normalised by its own statistics, a PRepBN as RepBN alone. Everything
    else runs in eval mode, without gradients. All modes are as before afterwards.

    Args:
        model: holds the norms; `normfold.nn.valid_tokens` may be used around this call or within ``forward``.
        batches: tensors, tuples or lists (``model(*batch)``), mappings (``model(**batch)``).
            With several ranks, those of each rank; they stop where the first rank has no more.
        forward: ``forward(model, batch)``, for batches that need another call.

    Returns:
        The paths of the norms that were written; others were never called or have no statistics.

    Raises:
        UsageError: no norm of normfold in the model, or no batch.
    """
    norms = offline_norms(model)
    if not norms:
        raise UsageError("no norm of normfold in the model", hint="replace its norms first")
    with modes(model, lambda module: isinstance(module, OfflineNorm)), recording(model) as seen:
        if not run(model, batches, forward):
            raise UsageError("no batch to take statistics from")
    written = []
    for path, norm in norms.items():
        buffer = next(norm.buffers(), None)
        seen[path].gather(torch.device("cpu") if buffer is None else buffer.device)
        if buffer is not None and seen[path].count > 1:
            norm.adopt(seen[path])
            written.append(path)
    return written
