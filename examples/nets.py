"""The example networks for 32x32 RGB: a ResNet, a MobileNetV2-style net, a pre-LN ViT."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resnet20(num_classes: int = 10) -> ResNet:
    """ResNet-20 (He et al. 2016, section 4.2), projection shortcuts; 0.27 M parameters."""
    return ResNet(blocks=(3, 3, 3), widths=(16, 32, 64), num_classes=num_classes)


def mobilenet_v2_small(num_classes: int = 10) -> MobileNetV2:
    """MobileNetV2 (Sandler et al. 2018) scaled to 32x32 images; 0.16 M parameters."""
    stages = (
        Stage(expand=1, channels=16, blocks=1, stride=1),
        Stage(expand=4, channels=24, blocks=2, stride=2),
        Stage(expand=4, channels=40, blocks=3, stride=2),
        Stage(expand=4, channels=64, blocks=3, stride=1),
    )
    return MobileNetV2(stages, stem=16, head=256, num_classes=num_classes)


def vit_tiny_shapes(num_classes: int = 10) -> ViT:
    """Pre-LN ViT on 8x8 tokens, 5 blocks of width 96, convolutional stem; 0.45 M parameters."""
    return ViT(image=32, patch=4, width=96, depth=5, heads=4, mlp=192, num_classes=num_classes)


def vit_coarse_shapes(num_classes: int = 10) -> ViT:
    """The same on 4x4 tokens: a third of the time."""
    return ViT(image=32, patch=8, width=96, depth=5, heads=4, mlp=192, num_classes=num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H/stride,W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of `BasicBlock`s (all but the first halve the resolution), a linear head."""

    image_size = 32  # tells tools the input that the network was made for

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,H,W) to logits (N,num_classes)."""
        x = self.blocks(F.relu(self.bn(self.conv(images))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Stage(NamedTuple):
    """A run of inverted residuals of equal width; only the first one strides."""

    expand: int
    channels: int
    blocks: int
    stride: int


class ConvBNReLU6(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [ConvBNReLU6(inputs, hidden, kernel=1)]
        layers += [
            ConvBNReLU6(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H/stride,W/stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """A stem, stages of inverted residuals, a 1x1 convolution, global pooling, a linear head."""

    image_size = 32  # tells tools the input that the network was made for

    def __init__(self, stages: tuple[Stage, ...], stem: int, head: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNReLU6(3, stem, kernel=3)]
        inputs = stem
        for stage in stages:
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                layers.append(InvertedResidual(inputs, stage.channels, stride, stage.expand))
                inputs = stage.channels
        layers.append(ConvBNReLU6(inputs, head, kernel=1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(head, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,H,W) to logits (N,num_classes)."""
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned gain per feature (Touvron et al. 2021)."""

    def __init__(self, width: int, initial: float = 0.5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(...,width) to the same shape."""
        return x * self.gain


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,tokens,width) to the same shape."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-LN transformer block: attention and a GELU MLP, each with LayerNorm and LayerScale."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.scale2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,tokens,width) to the same shape."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def stem(width: int, patch: int = 4) -> nn.Sequential:
    """Convolutional stem, (N,3,H,W) to (N,width,H/patch,W/patch), one token per patch of 4x4 or 8x8 pixels.

    Learns far faster from few images than a linear projection of 4x4 patches (Xiao et al. 2021,
    "Early convolutions help transformers see better").
    """
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, stride in ((32, 2), (64, 2), (64, patch // 4)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(inputs, width, 1))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021): class token, learned position embedding."""

    image_size = 32  # tells tools the input that the network was made for

    def __init__(
        self,
        image: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem(width, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,image,image) to logits (N,num_classes)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(tokens.shape[0], -1, -1)
        x = self.blocks(torch.cat((first, tokens), dim=1) + self.position)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]
