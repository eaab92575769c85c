"""Factories that command lines of the tests name, as `tests.cli.nets:tiny`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.judge.nets import Small
from tests.nets import perturb


class Tiny(Small):
    """conv, BN, ReLU, mean, linear, BN on (N,3,8,8)."""

    image_size = 8


class Stuck(Tiny):
    """A BN between two ops that nothing passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(self.stuck(torch.tanh(super().forward(x))))


def tiny(seed: int = 0) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(seed)
    return perturb(Tiny(), seed)


def stuck() -> nn.Module:
    """A network with one site that is left."""
    torch.manual_seed(0)
    return perturb(Stuck())


class Branches(nn.Module):
    """Control flow on data: cannot be captured."""

    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if y.sum() > 0:
            return y
        return -y


def branches() -> nn.Module:
    """A network that torch.export refuses."""
    return Branches().eval()


def sleeps() -> nn.Module:
    """Says that it was called in a file, and takes its time."""
    Path(os.environ["SLEEPS"]).write_text("called")
    time.sleep(60)
    return tiny()


class Recurrent(nn.Module):
    """An LSTM and a linear layer on (N,T,64)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0])
        return y


def recurrent() -> nn.Module:
    """A network most of whose weights no integer kernel takes."""
    torch.manual_seed(0)
    return Recurrent().eval()
