"""Wrappers of torch that only pass a call on to the network inside: of averages, compilers, several devices."""

from __future__ import annotations

from torch import nn

# where each of them keeps the network
_INSIDE = {
    "AveragedModel": "module",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network inside of all wrappers, and a note for each of them."""
    notes: list[str] = []
    while inside := _inside(module):
        notes.append(f"took the network out of the `{type(module).__name__}` around it")
        module = getattr(module, inside)
    return module, notes


def _inside(module: nn.Module) -> str | None:
    """The attribute with the network; None for what is no wrapper, or has a `forward` of its own."""
    kinds = [kind for kind in type(module).__mro__ if kind.__name__ in _INSIDE]
    own = next((kind for kind in type(module).__mro__ if "forward" in vars(kind)), nn.Module)
    if (
        not kinds
        or not kinds[0].__module__.startswith("torch.")
        or own not in (kinds[0], nn.Module)
    ):
        return None
    return _INSIDE[kinds[0].__name__]
