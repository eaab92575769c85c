"""Graphs whose parameters are in the host's memory, run on another device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from normfold.errors import EnvironmentMissing, UsageError


def device_of(name: str | None) -> torch.device:
    """The device of this name; without one, a GPU where torch sees one.

    Raises:
        UsageError: there is no such device.
        EnvironmentMissing: torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name not in (None, "cpu", "cuda"):
        raise UsageError(f"there is no device `{name}`", hint="`--device` takes `cpu` or `cuda`")
    if name == "cuda" and not available:
        raise EnvironmentMissing("torch sees no CUDA device on this machine", hint="`--device cpu`")
    return torch.device(name or ("cuda" if available else "cpu"))


class Placed(fx.Interpreter):
    """Runs a graph on a device: parameters are brought there once, and tensors that it makes are made there."""

    def __init__(self, module: fx.GraphModule, device: torch.device | str = "cpu") -> None:
        super().__init__(module)
        self.device = torch.device(device)
        self._there: dict[str, Tensor] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["enable_io_processing"] = False
        there = (x.to(self.device) if isinstance(x, Tensor) else x for x in args)
        return super().run(*there, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        if target not in self._there:
            value = super().fetch_attr(target)
            if not isinstance(value, Tensor):
                return value
            self._there[target] = value.to(self.device)
        return self._there[target]

    def call_function(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.device}
        return super().call_function(target, args, kwargs)
