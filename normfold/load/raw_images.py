"""Networks that take images as bytes: ``x / 255``, mean and deviation are within, and fold into the first layer.

f((b / 255 - mean) / std)  =  f(a b + c)        a = 1 / (255 std), c = -mean / std, b from 0 to 255
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir.fresh import with_forward
from normfold.load.capture import input_normalisation
from normfold.load.types import Loaded

_PREPROCESSOR = "preprocessor_config.json"


def with_bytes(
    loaded: Loaded, model: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Loaded:
    """A loaded network as one that takes its images as bytes (uint8); parameters keep their names.

    Args:
        model: where it is from; a folder may say how images are normalised.
        mean, std: of images in [0, 1], one number for each channel or for all; None for those that the network, or
            its folder, says.

    Raises:
        UsageError: there is no single input of images, or nothing says how they are normalised.
    """
    if loaded.exported is not None:
        raise UsageError(
            "`--uint8-input`: an exported program has inputs of fixed types",
            hint="`--passes` with `fold-input{mean=... std=...}` folds the normalisation of floats",
        )
    name, image = _image(loaded)
    means, stds = _numbers(loaded.module, model, mean, std, image.shape[1])
    own: Any = type(loaded.module)
    signature = inspect.signature(own.forward)
    shape = [-1] + [1] * (image.dim() - 2)
    scale = 255 * torch.tensor(stds, dtype=torch.float64).reshape(shape)
    shift = 255 * torch.tensor(means, dtype=torch.float64).reshape(shape)
    scale, shift = scale.to(image.dtype), shift.to(image.dtype)

    @functools.wraps(own.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments[name].to(image.dtype)
        bound.arguments[name] = (given - shift.to(given.device)) / scale.to(given.device)
        return own.forward(*bound.args, **bound.kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    module = with_forward(loaded.module, forward)
    if module is loaded.module:
        raise UsageError("`--uint8-input`: the network cannot be copied", found=own.__name__)
    size = "x".join(map(str, image.shape[1:]))
    note = (
        f"`{name}` takes images of {size} as bytes: (x / 255 - mean) / std is within, with mean "
        f"{_text(means)} and std {_text(stds)}"
    )
    args, kwargs = _as_bytes((loaded.args, loaded.kwargs), image, scale, shift)
    trials = [_as_bytes(call, image, scale, shift) for call in loaded.trials]
    notes = [*loaded.notes, note]
    return dataclasses.replace(
        loaded, module=module, args=args, kwargs=kwargs, notes=notes, trials=trials
    )


def _image(loaded: Loaded) -> tuple[str, Tensor]:
    """The parameter that takes images, and the example."""
    forward = type(loaded.module).forward
    bound = inspect.signature(forward).bind(loaded.module, *loaded.args, **loaded.kwargs)
    found = {
        name: value
        for name, value in bound.arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4
    }
    if len(found) != 1:
        raise UsageError(
            "`--uint8-input`: the network has not one input of images",
            found=f"{len(found)} parameters of `forward` are images (N,C,H,W) in floats",
            hint="it is for networks of images; others take their inputs as they are",
        )
    return next(iter(found.items()))


def _numbers(
    module: nn.Module,
    model: Any,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
) -> tuple[list[float], list[float]]:
    said = input_normalisation(module) or _of_folder(model) or {}
    found = [said.get("mean") if mean is None else mean, said.get("std") if std is None else std]
    if any(part is None for part in found):
        missing = " and ".join(
            name for name, part in zip(("mean", "std"), found, strict=True) if part is None
        )
        raise UsageError(
            f"`--uint8-input`: nothing says what images are normalised by ({missing})",
            hint="`--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225`, as the network was trained with; `--mean 0 "
            "--std 1` for images from 0 to 1",
        )
    pair = [
        [float(x) for x in part] * (channels if len(part) == 1 else 1) for part in found if part
    ]
    wrong = any(len(part) != channels for part in pair)
    if len(pair) != 2 or wrong or not all(map(math.isfinite, chain(*pair))) or min(pair[1]) <= 0:
        raise UsageError(
            "`--uint8-input` wants a mean and a deviation above zero for each channel, or one for all",
            found=f"mean {_text(found[0] or ())}, std {_text(found[1] or ())}; {channels} channels",
        )
    if max(pair[0]) > 1 or max(pair[1]) > 1:
        raise UsageError(
            "`--uint8-input` wants mean and deviation of images from 0 to 1",
            found=f"mean {_text(found[0] or ())}, std {_text(found[1] or ())}",
            hint="divide those of images from 0 to 255 by 255",
        )
    return pair[0], pair[1]


def _of_folder(model: Any) -> dict[str, list[float]] | None:
    """What the preprocessor of a folder of transformers does to images from 0 to 1."""
    if not isinstance(model, str | Path) or not Path(model).is_dir():
        return None
    path = Path(model) / _PREPROCESSOR
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not {"image_mean", "image_std"} <= config.keys():
        return None
    factor = 255 * float(config.get("rescale_factor", 1 / 255))  # 1 where images go to [0, 1]
    if config.get("do_rescale") is False or abs(factor - 1) > 1e-6:
        return None
    if config.get("do_normalize") is False:
        return {"mean": [0.0], "std": [1.0]}
    return {"mean": list(config["image_mean"]), "std": list(config["image_std"])}


def _as_bytes(call: Any, image: Tensor, scale: Tensor, shift: Tensor) -> Any:
    """Arguments with the nearest bytes in the place of images like the example, which are normalised."""

    def one(value: Any) -> Any:
        like = isinstance(value, Tensor) and value.dim() == 4 and value.dtype == image.dtype
        return (value * scale + shift).round().clamp(0, 255).to(torch.uint8) if like else value

    return pytree.tree_map(one, call)


def _text(numbers: Sequence[float]) -> str:
    return "|".join(f"{number:.6g}" for number in numbers)
