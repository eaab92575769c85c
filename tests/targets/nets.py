"""Small networks, perturbed so that no statistic is trivial, and how they are folded and judged here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.ir import Graph, capture
from normfold.rewrite import parse, run_pipeline

PIPELINE = "canonicalize,fold-affine,restore,bake"


def perturb(module: nn.Module) -> nn.Module:
    """Random statistics, affines and biases."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            for name, value in part.named_parameters(recurse=False):
                if name in ("weight", "bias") and value.dim() == 1:
                    value.add_(torch.randn_like(value) * 0.2)
    return module.eval()


def folded(module: nn.Module, *args: Any, dynamic: Any = "batch", text: str = PIPELINE) -> Graph:
    """The captured and rewritten network."""
    graph, _ = run_pipeline(capture(module, args, dynamic=dynamic), parse(text))
    return graph


def reference(module: nn.Module, *args: Tensor) -> list[Tensor]:
    """Outputs in float64, flat."""
    widened = [x.double() if x.is_floating_point() else x for x in args]
    with torch.no_grad():
        outputs = module.double()(*widened)
    module.float()
    return list(pytree.tree_leaves(outputs))


def error(results: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error relative to the scale of its output."""
    assert [tuple(x.shape) for x in results] == [tuple(x.shape) for x in expected]
    pairs = zip(results, expected, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


class ConvNet(nn.Module):
    """conv, BN, ReLU, pooling, depthwise conv, BN, global pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.fc(self.pool(x).flatten(1))
        return y


class Transposed(nn.Module):
    """Transposed convolution with BN, then BN before a zero-padded conv, which needs a bias map or a pad."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.bn2(F.relu(self.bn(self.up(x)))))
        return y


class Block(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, width // 2)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """A pre-norm vision transformer with a class token."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.Sequential(Block(16, norm), Block(16, norm))
        self.norm = norm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


class TwoInputs(nn.Module):
    """Two inputs and a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Linear(4, 6), nn.Linear(3, 6), nn.BatchNorm1d(6)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(self.a(left)) + self.b(right)
        return x, torch.sigmoid(x)


class Dictionary(nn.Module):
    """A dictionary of outputs, one of them named like an input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.bn(self.fc(x))
        return {"logits": y, "probabilities": y.softmax(-1), "x": y * 2}


class Kept(nn.Module):
    """A BN that nothing can absorb: between two sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bn(torch.sigmoid(x)))
