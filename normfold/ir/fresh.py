"""Copies of a network to try things on: a call may leave traces on modules and in buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn


def fresh(module: nn.Module) -> nn.Module:
    """A copy with buffers and attributes of its own that shares the parameters.

    A network that cannot be copied, and a graph of torch.export, which keeps nothing besides its buffers, is
    returned itself.
    """
    if isinstance(module, fx.GraphModule):
        return module
    shared: dict[int, object] = {id(tensor): tensor for tensor in module.parameters()}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # which deepcopy refuses
                shared[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, shared)
    except Exception:  # whatever the attributes of a network raise
        return module


def with_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A copy whose class has another ``forward``; parameters, and the name of the class, stay.

    A network that cannot be copied is returned itself.
    """
    made, own = fresh(module), type(module)
    if made is not module:
        made.__class__ = type(
            own.__name__, (own,), {"forward": forward, "__module__": own.__module__}
        )
    return made
