"""Modules that read their parameters back: copies without parameters, and runs as the network was captured."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import ExportError, last_line
from normfold.ir import Graph
from normfold.ir.fresh import fresh
from normfold.targets.order import Run


def unloaded(original: nn.Module) -> nn.Module:
    """A copy of a module whose state dict is all NaN: what is not loaded shows."""
    module = copy.deepcopy(fresh(original))
    for part in module.modules():
        if hasattr(part, "parametrizations"):  # which are properties of a class that copies share
            kind = type(part)
            part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    with torch.no_grad():
        for value in module.state_dict().values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.fill_(torch.nan)
    return module


def runner(captured: Graph, module: nn.Module) -> Run:
    """Run a module on flat tensors, as the network was captured."""
    leaves, tree = pytree.tree_flatten((captured.args, captured.kwargs))

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = iter(inputs)
        full = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(full, tree)
        try:
            found = pytree.tree_leaves(module(*args, **kwargs))
        except Exception as error:  # it may read attributes of a layer that is gone
            raise ExportError(
                "the changed module does not run",
                found=last_line(error),
                hint="its `forward` needs the layers that are gone: export another format",
            ) from error
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    return run
