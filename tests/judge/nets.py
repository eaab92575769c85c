"""Nets, folding and damage that the verifier's tests share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.ir import Graph
from normfold.ir.expressions import fetch
from tests.nets import perturb

FOLDED = "canonicalize,fold-affine,restore,bake"
UNBAKED = "canonicalize,fold-affine,restore"


class Small(nn.Module):
    """conv, BN, ReLU, mean, linear, BN: (N,3,6,7) to (N,5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.last(self.fc(y))  # type: ignore[no-any-return]


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A `Small` in eval mode with nothing at its default."""
    torch.manual_seed(0)
    return perturb(Small()).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of two for `Small`."""
    return torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)


class Wrapped(nn.Module):
    """Another network whose outputs go through a function."""

    def __init__(self, inner: nn.Module, change: Any) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x), x)


def nudged(graph: Graph, name: str, amount: float) -> Graph:
    """A copy of ``graph`` with ``amount`` added to the first number of one parameter."""
    copy = graph.copy()
    *path, leaf = name.split(".")
    value = fetch(copy.module, name).detach().clone()
    value.reshape(-1)[0] += amount
    owner = copy.module.get_submodule(".".join(path))
    delattr(owner, leaf)
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    return copy
