"""Example inputs that nobody gave: from timm's config, the HF config, or the first layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normfold.load import folder_inputs
from normfold.load.types import Wanted

SIZES = (224, 32, 64, 96, 28, 256, 299)
_SIZE_ATTRIBUTES = ("img_size", "image_size", "input_size")


@dataclass(frozen=True)
class Guess:
    """Inputs, where they are derived from, and what was assumed about them."""

    inputs: tuple[Wanted, ...]
    why: str
    notes: tuple[str, ...] = ()


def guesses(
    module: nn.Module,
    batch: int,
    image_size: tuple[int, int] | None = None,
    names: tuple[str, ...] = (),
) -> Iterator[Guess]:
    """Candidates in the order of how well founded they are; each is to be tried."""
    config = _timm_config(module)
    if config is not None:
        channels, height, width = config
        layer = _first(module)
        if layer is not None and isinstance(layer[1], nn.Conv2d):
            channels = layer[1].in_channels
        side = image_size or declared_size(module) or (height, width)
        yield Guess((Wanted(None, (batch, channels, *side)),), "timm pretrained_cfg")
    if hasattr(module, "main_input_name") and hasattr(module, "config"):
        for inputs, notes in folder_inputs.wanted(module, batch, image_size, names):
            yield Guess(inputs, "HF config", notes)
        return  # a guess from the first layer would leave inputs out
    tried = 0
    for path, layer_module in _layers(module):
        for shape, text, high in _layer_shapes(layer_module, batch, declared_size(module)):
            where = path or type(layer_module).__name__
            yield Guess((Wanted(None, shape, high),), f"first layer's shape ({where}: {text})")
            tried += 1
        if tried > 8:
            return


def declared_size(module: nn.Module) -> tuple[int, int] | None:
    """The image size that a model declares as an attribute, as (height, width)."""
    owners = [module, getattr(module, "patch_embed", None), getattr(module, "config", None)]
    for owner in owners:
        for name in _SIZE_ATTRIBUTES:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value, value
            if isinstance(value, tuple | list) and len(value) in (2, 3):
                last = value[-2:]
                if all(isinstance(side, int) for side in last):
                    return int(last[0]), int(last[1])
    return None


def vocabularies(module: nn.Module) -> tuple[int, ...]:
    """Upper ends for integer inputs: the first embedding's vocabulary, then the smallest."""
    sizes = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    return tuple(dict.fromkeys((sizes[0], min(sizes)))) if sizes else (2,)


def _timm_config(module: nn.Module) -> tuple[int, int, int] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        config: Any = getattr(module, name, None)
        size = config.get("input_size") if isinstance(config, dict) else None
        size = size or getattr(config, "input_size", None)
        if isinstance(size, tuple | list) and len(size) == 3 and all(map(_positive, size)):
            return int(size[0]), int(size[1]), int(size[2])
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _first(module: nn.Module) -> tuple[str, nn.Module] | None:
    return next(iter(_layers(module)), None)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, layer in module.named_modules():
        if next(_layer_shapes(layer, 2, None), None) is not None:
            yield path, layer


def _layer_shapes(
    layer: nn.Module, n: int, size: tuple[int, int] | None
) -> Iterator[tuple[tuple[int, ...], str, int]]:
    dims = _spatial(layer)
    channels = _channels(layer)
    if isinstance(layer, nn.Embedding):
        yield (n, 16), f"{layer.num_embeddings} tokens, assumed 16 positions", layer.num_embeddings
    elif isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        width = layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.input_size
        yield (n, 16, width), f"{width} features, assumed 16 positions", 0
    elif isinstance(layer, nn.LayerNorm):
        shape = tuple(layer.normalized_shape)
        yield (n, *shape), f"{'x'.join(map(str, shape))} features", 0
        yield (n, 16, *shape), f"{'x'.join(map(str, shape))} features, assumed 16 positions", 0
    elif channels is None or channels < 1:
        return
    elif dims == 0:
        yield (n, channels), f"{channels} features", 0
        yield (n, 16, channels), f"{channels} features, assumed 16 positions", 0
    elif dims == 1:
        yield (n, channels, 128), f"{channels} channels, assumed length 128", 0
        if isinstance(layer, nn.BatchNorm1d):
            yield (n, channels), f"{channels} features", 0
    elif dims == 2:
        declared = [size] if size else []
        for side in [*declared, *((s, s) for s in SIZES if (s, s) != size)]:
            text = f"{side[0]}x{side[1]}"
            how = "declared" if side == size else "assumed"
            yield (n, channels, *side), f"{channels} channels, {how} {text}", 0
    elif dims == 3:
        yield (n, channels, 16, 64, 64), f"{channels} channels, assumed 16x64x64", 0
        yield (n, channels, 8, 32, 32), f"{channels} channels, assumed 8x32x32", 0


def _channels(layer: nn.Module) -> int | None:
    for name in ("in_channels", "num_features", "num_channels", "in_features"):
        value = getattr(layer, name, None)
        if isinstance(value, int) and isinstance(layer, _KINDS):
            return value
    return None


_BY_DIMS = (
    (1, (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)),
    (2, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.SyncBatchNorm)),
    (3, (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d)),
    (2, (nn.GroupNorm,)),
    (0, (nn.Linear,)),
)
_KINDS = tuple(kind for _, kinds in _BY_DIMS for kind in kinds)


def _spatial(layer: nn.Module) -> int | None:
    return next((dims for dims, kinds in _BY_DIMS if isinstance(layer, kinds)), None)


def float_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter or buffer; float32 when there is none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32
