"""How a model is run over batches for its statistics: without gradients, in eval mode but for what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normfold.nn.statistics import world_size

Forward = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, batch: Any) -> Any:
    """``model(x)``, ``model(*batch)`` for a tuple or list, ``model(**batch)`` for a mapping."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def run(model: nn.Module, batches: Iterable[Any], forward: Forward | None) -> int:
    """Call the model on every batch without gradients; how many there were."""
    count = 0
    with torch.no_grad():
        for batch in _in_step(batches, model):
            (forward or call)(model, batch)
            count += 1
    return count


def _in_step(batches: Iterable[Any], model: nn.Module) -> Iterator[Any]:
    """The batches while every rank has one: a rank that went on alone would wait for ever in its first norm."""
    iterator, end = iter(batches), object()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    while True:
        batch = next(iterator, end)
        if world_size() > 1:
            ready = torch.tensor(float(batch is not end), device=device)
            dist.all_reduce(ready, dist.ReduceOp.MIN)
            batch = batch if bool(ready) else end
        if batch is end:
            return
        yield batch


@contextmanager
def modes(model: nn.Module, training: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Training mode for the modules that ``training`` accepts, eval mode for the others; restored.

    The flags are written directly: `nn.Module.train` of a whole model may do more, such as merge adapters.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = training(module)
        yield
    finally:
        for module, old in before:
            module.training = old
