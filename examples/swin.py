"""A Swin-like network for 32x32 RGB: shifted windows, relative positions, patch merging, mean of the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.nets import stem


def swin_shapes(num_classes: int = 10) -> Swin:
    """8x8 tokens of width 64 in four blocks, 4x4 of width 128 in two, windows of 4x4; 0.59 M parameters."""
    return Swin(tokens=8, widths=(64, 128), depths=(4, 2), heads=(4, 8), num_classes=num_classes)


class WindowAttention(nn.Module):
    """Self-attention in windows of `window`^2 tokens, shifted by `shift` (Liu et al. 2021, section 3.2)."""

    position: Tensor
    apart: Tensor

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.window, self.shift = heads, side, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        self.register_buffer("position", _relative(window), persistent=False)
        self.register_buffer("apart", _apart(side, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N,side,side,width) to the same shape."""
        n, _, _, width = x.shape
        count, window = self.side // self.window, self.window
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.reshape(n, count, window, count, window, width).transpose(2, 3)
        qkv = self.qkv(x).reshape(n, count**2, window**2, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.bias[self.position].permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, bias + self.apart)
        mixed = mixed.transpose(2, 3).reshape(n, count, count, window, window, width)
        x = self.out(mixed.transpose(2, 3).reshape(n, self.side, self.side, width))
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class Block(nn.Module):
    """Pre-LN block: window attention and a GELU MLP, a LayerNorm before each."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, side, window, shift)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N,side,side,width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Four neighbours into one token: LayerNorm over all of them, then a projection to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N,side,side,width) to (N,side/2,side/2,2*width)."""
        n, side, _, width = x.shape
        x = x.reshape(n, side // 2, 2, side // 2, 2, width).transpose(2, 3)
        return self.reduction(self.norm(x.reshape(n, side // 2, side // 2, 4 * width)))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Convolutional stem, stages of `Block`s with `PatchMerging` between them, mean of the tokens, linear head."""

    image_size = 32  # tells tools the input that the network was made for

    def __init__(
        self,
        tokens: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        num_classes: int,
        window: int = 4,
    ) -> None:
        super().__init__()
        self.stem = stem(widths[0])
        layers: list[nn.Module] = []
        side = tokens
        for stage, (width, depth, many) in enumerate(zip(widths, depths, heads, strict=True)):
            if stage:
                layers.append(PatchMerging(widths[stage - 1]))
                side //= 2
            for block in range(depth):
                shift = window // 2 if block % 2 and side > window else 0
                layers.append(Block(width, many, side, window, shift))
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,4*tokens,4*tokens) to logits (N,num_classes)."""
        x = self.blocks(self.stem(images).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))  # type: ignore[no-any-return]


def _relative(window: int) -> Tensor:
    """Place in the bias table of every pair of tokens of a window, (window^2, window^2)."""
    at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = at[:, None] - at[None, :] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def _apart(side: int, window: int, shift: int) -> Tensor:
    """0 for pairs in a shifted window that were neighbours before, -100 for others, (windows,1,w^2,w^2)."""
    line = torch.arange(side)
    part = (line >= side - window).long() + (line >= side - shift).long() * bool(shift)
    region = part[:, None] * 3 + part[None, :]
    count = side // window
    rows = region.reshape(count, window, count, window).transpose(1, 2).reshape(count**2, -1)
    same = rows[:, :, None] == rows[:, None, :]
    return torch.where(same, 0.0, -100.0)[:, None] if shift else torch.zeros(1, 1, 1, 1)
