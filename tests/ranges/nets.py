"""Networks of the kinds that are quantised: residual, inverted, gated, concatenated; attention; tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Compose, perturb


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(x + m.second(F.relu(m.first(x))))
        return m.head(F.max_pool2d(x, 2).mean((2, 3)))  # type: ignore[no-any-return]

    return Compose(
        forward, stem=conv(3, 8), first=conv(8, 8), second=conv(8, 8), head=nn.Linear(8, 5)
    )


def inverted() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu6(m.stem(x))
        x = x + m.project(F.relu6(m.depthwise(F.relu6(m.expand(x)))))
        return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]

    return Compose(
        forward,
        stem=conv(3, 8),
        expand=conv(8, 16, 1),
        depthwise=conv(16, 16, groups=16),
        project=conv(16, 8, 1),
        head=nn.Linear(8, 5),
    )


def gated() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.silu(m.stem(x))
        gate = m.expand(F.silu(m.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return m.head(F.silu(m.last(x * gate)).mean((2, 3)))  # type: ignore[no-any-return]

    return Compose(
        forward,
        stem=conv(3, 8),
        reduce=nn.Conv2d(8, 4, 1),
        expand=nn.Conv2d(4, 8, 1),
        last=conv(8, 8),
        head=nn.Linear(8, 5),
    )


def joined() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = torch.cat((F.relu(m.left(x)), F.leaky_relu(m.right(x), 0.1)), 1)
        return m.head(F.avg_pool2d(F.relu(m.last(x)), 2).flatten(1))  # type: ignore[no-any-return]

    head = nn.Linear(8 * 6 * 5, 5)
    return Compose(
        forward, stem=conv(3, 8), left=conv(8, 8), right=conv(8, 4, 1), last=conv(12, 8), head=head
    )


class Attention(nn.Module):
    """Patches, one block of attention, a head: LayerNorms, nothing that remembers statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.qkv = (
            nn.Conv2d(3, 16, 4, 4),
            nn.LayerNorm(16),
            nn.Linear(16, 48),
        )
        self.out, self.last, self.head = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(self.norm(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.last(x).mean(1))  # type: ignore[no-any-return]


class Speaker(nn.Module):
    """Tokens, a table, a residual MLP behind a LayerNorm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(40, 32), nn.LayerNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm block; the norm is a LayerNorm or an RMSNorm."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.inner = norm(width), nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Tokens in, blocks, a norm, a head."""

    def __init__(self, width: int, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(11, width), nn.Parameter(torch.randn(6, width))
        self.blocks = nn.Sequential(*(Block(width, norm) for _ in range(3)))
        self.norm, self.head = norm(width), nn.Linear(width, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.blocks(self.embed(ids) + self.position)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def made_residual() -> nn.Module:
    """For the command line, with parameters that are not those of a fresh network."""
    torch.manual_seed(0)
    return perturb(residual())


def made_attention() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Attention())


def made_speaker() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Speaker())


def plain() -> nn.Module:
    """No norm at all."""
    net = Compose(
        lambda m, x: m.head(F.relu(m.conv(x)).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3),
        head=nn.Linear(8, 5),
    )
    return net.eval()
