"""Runs whose reports the tests read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import normfold
from normfold.report import Report


class Mixed(nn.Module):
    """Sites of every fate: folded, stuck between two ReLUs, batch statistics, a run-time norm."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.conv, self.gone = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.stuck = nn.BatchNorm2d(4)
        self.layer, self.fc = nn.LayerNorm(4), nn.Linear(4, 2)
        self.kept = nn.LayerNorm(2)
        with torch.no_grad():
            for norm in (self.gone, self.stuck):
                norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, -1.0]))
                norm.bias.copy_(torch.tensor([0.5, 1.0, -1.0, 2.0]))
            self.layer.weight.mul_(2)
            self.kept.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.gone(self.conv(self.free(x))))
        y = torch.tanh(self.stuck(torch.tanh(y))).mean((2, 3))
        return self.kept(self.fc(self.layer(y)))  # type: ignore[no-any-return]


def mixed(pipeline: str = "canonicalize,fold-affine,restore,bake", verify: str = "each") -> Report:
    """The report on a `Mixed`."""
    torch.manual_seed(0)
    graph = normfold.capture(Mixed().eval(), (torch.randn(2, 3, 6, 7),))
    return normfold.run(graph, pipeline, verify=verify)[1]  # type: ignore[arg-type]
