"""An EfficientNet-like network for 32x32 RGB: inverted residuals with SiLU and squeeze-and-excitation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from examples.nets import Stage


def efficientnet_small(num_classes: int = 10) -> EfficientNet:
    """EfficientNet (Tan & Le 2019) scaled to 32x32 images; 0.2 M parameters."""
    stages = (
        Stage(expand=1, channels=16, blocks=1, stride=1),
        Stage(expand=4, channels=24, blocks=2, stride=2),
        Stage(expand=4, channels=40, blocks=2, stride=2),
        Stage(expand=4, channels=64, blocks=2, stride=1),
    )
    return EfficientNet(stages, stem=16, head=256, num_classes=num_classes)


class ConvBNSiLU(nn.Sequential):
    """Convolution, BatchNorm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )


class SqueezeExcite(nn.Module):
    """Channels times a gate that is made of their means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,channels,H,W) to the same shape."""
        gate: Tensor = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-and-excitation, project; a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [ConvBNSiLU(inputs, hidden, 1)]
        layers += [
            ConvBNSiLU(hidden, hidden, 3, stride, groups=hidden),
            SqueezeExcite(hidden, max(4, inputs // 4)),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H/stride,W/stride)."""
        out = self.layers(x)
        return x + out if self.shortcut else out  # type: ignore[no-any-return]


class EfficientNet(nn.Module):
    """A stem, stages of `MBConv`s, a 1x1 convolution, a linear head."""

    image_size = 32  # tells tools the input that the network was made for

    def __init__(self, stages: tuple[Stage, ...], stem: int, head: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNSiLU(3, stem, 3)]
        inputs = stem
        for stage in stages:
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                layers.append(MBConv(inputs, stage.channels, stride, stage.expand))
                inputs = stage.channels
        layers.append(ConvBNSiLU(inputs, head, 1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(head, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,H,W) to logits (N,num_classes)."""
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]
