"""Networks to measure on, as `pkg.mod:factory`: timm's, random weights, norms away from the identity.

Needs timm, but for `tiny`, on which each script can be tried in seconds. torchvision, which timm imports, cannot
be imported beside some CPU builds of torch; only then is it mended with the shim of the tests.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn


def import_timm() -> Any:
    """timm, with torchvision mended if need be."""
    mend_torchvision()
    return importlib.import_module("timm")


def mend_torchvision() -> None:
    """What timm and transformers import, if they find it."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # a RuntimeError about a missing operator, mostly
        importlib.import_module("tests.torchvision_shim")


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, tokens with LayerNorm, a head: a little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16)}  # as timm's networks say it
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm_pre_head = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N,3,16,16) to logits (N,10)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.mlp(self.norm(tokens))
        logits: torch.Tensor = self.head(self.norm_pre_head(tokens).mean(1))
        return logits


def make(name: str) -> nn.Module:
    """`tiny`, or a timm network, in eval mode; statistics and affines of its norms are random."""
    torch.manual_seed(0)
    built = Tiny() if name == "tiny" else import_timm().create_model(name, pretrained=False)
    model: nn.Module = built.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            # a zero-initialised last gamma would hide the whole branch from any comparison
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
    return model


def example_input(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """The image batch that both sides of a comparison are captured with."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size", (3, 224, 224)))
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    return make("tiny")


def resnet18() -> nn.Module:
    return make("resnet18")


def resnet50() -> nn.Module:
    return make("resnet50")


def mobilenetv3_large_100() -> nn.Module:
    return make("mobilenetv3_large_100")


def convnext_tiny() -> nn.Module:
    return make("convnext_tiny")


def vit_base_patch16_224() -> nn.Module:
    return make("vit_base_patch16_224")


def swin_tiny() -> nn.Module:
    return make("swin_tiny_patch4_window7_224")
