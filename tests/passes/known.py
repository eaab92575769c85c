"""Networks whose weights are on grids: ternary layers, and such as were trained with rounded weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Compose, perturb

WIDTH = 256


def _ternary(weight: Tensor) -> Tensor:
    """The mean magnitude as the scale (Ma et al. 2024, "The era of 1-bit LLMs")."""
    scale = weight.abs().mean()
    return (weight / scale).round().clamp(-1, 1) * scale


def rounded(weight: Tensor, bits: int, block: int = 0) -> Tensor:
    """Rounded as training with ``bits`` does, with a scale per output channel or block of inputs."""
    groups = weight.reshape(-1, block) if block else weight.flatten(1)
    top = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) * 0.8 / top  # large weights are clipped
    values: Tensor = ((groups / scale).round().clamp(-top - 1, top) * scale).reshape(weight.shape)
    return values


def _block(m: Any, x: Tensor) -> Any:
    size = (x.shape[0], x.shape[1], 4, WIDTH // 4)
    normed = m.norm(x)
    q, k, v = (part(normed).reshape(size).transpose(1, 2) for part in (m.q, m.k, m.v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + m.out(mixed)
    return m.head((x + m.down(F.silu(m.gate(m.second(x))) * m.up(m.second(x)))).mean(1))


def transformer() -> nn.Module:
    """A block as of BitNet: every linear layer but the head has three values, behind RMSNorms with gains."""
    parts = {name: nn.Linear(WIDTH, WIDTH, bias=False) for name in ("q", "k", "v", "out")}
    wide = {name: nn.Linear(WIDTH, 4 * WIDTH, bias=False) for name in ("gate", "up")}
    down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
    module = Compose(
        _block,
        norm=nn.RMSNorm(WIDTH),
        second=nn.RMSNorm(WIDTH),
        head=nn.Linear(WIDTH, 10),
        down=down,
        **parts,
        **wide,
    )
    return _on_grids(module, lambda name, weight: weight if name == "head" else _ternary(weight))


def mlp(bits: int = 4, block: int = 0) -> nn.Module:
    """Trained on a grid of so many bits, a scale per output channel or block."""
    module = Compose(
        lambda m, x: m.last(F.gelu(m.second(F.gelu(m.first(x))))),
        first=nn.Linear(WIDTH, 3 * WIDTH),
        second=nn.Linear(3 * WIDTH, 256),
        last=nn.Linear(256, WIDTH),
    )
    return _on_grids(module, lambda name, weight: rounded(weight, bits, block))


def convnet(bits: int = 8) -> nn.Module:
    """Convolutions with BatchNorms behind them, which fold into their rows; one is depthwise, one transposed."""
    module = Compose(
        lambda m, x: m.head(
            F.relu(m.up(F.relu(m.n2(m.depth(F.relu(m.n1(m.first(x)))))))).mean((2, 3))
        ),
        first=nn.Conv2d(3, 16, 3, padding=1),
        n1=nn.BatchNorm2d(16),
        depth=nn.Conv2d(16, 16, 3, groups=16, bias=False),
        n2=nn.BatchNorm2d(16),
        up=nn.ConvTranspose2d(16, 8, 2, stride=2),
        head=nn.Linear(8, 16),
    )

    def change(name: str, weight: Tensor) -> Tensor:
        if name == "up":
            return rounded(weight.transpose(0, 1), bits).transpose(0, 1)
        return _ternary(weight) if bits == 2 else rounded(weight, bits)

    return _on_grids(module, change)


def _on_grids(module: nn.Module, change: Any) -> nn.Module:
    perturb(module)
    with torch.no_grad():
        for name, part in module.named_modules():
            weight = getattr(part, "weight", None)
            if weight is not None and weight.dim() > 1:
                weight.copy_(change(name, weight))
    return module.eval()


def made_transformer() -> nn.Module:
    torch.manual_seed(0)
    return transformer()


def made_mlp() -> nn.Module:
    torch.manual_seed(0)
    return mlp()
