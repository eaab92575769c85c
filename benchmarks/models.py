"""Networks to measure on, as `pkg.mod:factory`: timm's, random weights, norms away from the identity.

Needs timm. torchvision, which timm imports, cannot be imported beside some CPU builds of torch; only then is it
mended with the shim of the tests.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn


def import_timm() -> Any:
    """timm, with torchvision mended if need be."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # a RuntimeError about a missing operator, mostly
        importlib.import_module("tests.torchvision_shim")
    return importlib.import_module("timm")


def make(name: str) -> nn.Module:
    """A timm network in eval mode; statistics and affines of its norms are random."""
    timm = import_timm()
    model: nn.Module = timm.create_model(name, pretrained=False).eval()
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


def example_input(model: nn.Module) -> torch.Tensor:
    """The image batch that both sides of a comparison are captured with."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size", (3, 224, 224)))
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


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
