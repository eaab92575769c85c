"""Networks that checkpoints of many layouts are for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


class Normalised(Wrapper):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


class NoBias(nn.Module):
    """No name of its old state dict is one of the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


class Renaming(Net):
    """Reads the names of its first version, as torchvision and mmcv do."""

    _version = 2

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, metadata: Any, *rest: Any
    ) -> None:
        if metadata.get("version", None) in (None, 1):
            state[prefix + "fc.weight"] = state.pop(prefix + "classifier.weight").T
            state[prefix + "fc.bias"] = state.pop(prefix + "classifier.bias")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Versioned(Net):
    """The names of both versions are the same: only the noted version tells them apart."""

    _version = 2

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, metadata: Any, *rest: Any
    ) -> None:
        if metadata.get("version", None) in (None, 1):
            state[prefix + "fc.bias"] = -state[prefix + "fc.bias"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> Any:
        return self.out(self.emb(x))


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(self.rename)  # type: ignore[no-untyped-call]

    @staticmethod
    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in [name for name in state if name.startswith(prefix + "trunk.")]:
            state[prefix + "body." + name[len(prefix) + 6 :]] = state.pop(name)
