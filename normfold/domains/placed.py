"""Graphs whose parameters are in the host's memory, run on another device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from normfold.errors import EnvironmentMissing, UsageError
from normfold.ir.evaluation import Domain


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


class Placed(Domain):
    """Numbers on a device: parameters are brought there once, and tensors that are made are made there."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._there: dict[str, Tensor] = {}

    def input(self, node: fx.Node, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def parameter(self, target: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if target not in self._there:
            self._there[target] = value.to(self.device)
        return self._there[target]

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.device}
        return super().run(node, args, kwargs)
