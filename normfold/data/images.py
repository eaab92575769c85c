"""A folder of images as one uint8 tensor, with labels where its subfolders are classes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normfold.data.checks import Shape, shown
from normfold.errors import EnvironmentMissing, LoadError, UsageError, last_line

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Pillow goes by what a file holds: PostScript under another suffix would start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
Size = int | tuple[int, int]


def listed(folder: Path) -> tuple[list[Path], Tensor | None, list[str]]:
    """The images in a folder, their labels where it holds a subfolder per class, and notes.

    Raises:
        LoadError: no image, a class without one, or images both beside and in subfolders.
    """
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    flat = [path for path in inside if _is_image(path)]
    classes = [path for path in inside if path.is_dir()]
    per_class = [sorted(filter(_is_image, path.iterdir())) for path in classes]
    if not any(per_class):
        if flat:
            return flat, None, []
        raise LoadError(
            "the folder holds no images",
            where=str(folder),
            found=", ".join(f"`{path.name}`" for path in inside[:5]) or "nothing",
            hint=f"{', '.join(sorted(SUFFIXES))}: directly in it, or in one subfolder for each class",
        )
    empty = [path.name for path, found in zip(classes, per_class, strict=True) if not found]
    if flat or empty:
        raise LoadError(
            "the folder is neither flat nor one of classes",
            where=str(folder),
            found=f"`{flat[0].name}` beside subfolders" if flat else f"no image in `{empty[0]}`",
            hint="images directly in it (no labels), or in one subfolder for each class (labels)",
        )
    labels = [at for at, found in enumerate(per_class) for _ in found]
    named = ", ".join(f"`{path.name}` {at}" for at, path in enumerate(classes[:12]))
    more = ", ..." if len(classes) > 12 else ""
    note = f"labels: {len(classes)} class folders in sorted order: {named}{more}"
    return [path for found in per_class for path in found], torch.tensor(labels), [note]


def crop_size(shape: Shape | None, size: Size | None) -> tuple[int, int, int]:
    """Channels, height and width of what a network takes.

    Raises:
        UsageError: its input is not an image, or its size is not known.
    """
    channels, height, width = shape[1:] if shape and len(shape) == 4 else (None, None, None)
    if shape is not None and (len(shape) != 4 or channels not in (None, 1, 3)):
        raise UsageError(
            "the network does not take images, and the data are a folder of them",
            found=f"an input of shape {shown(shape)}",
            hint="give the data as an `.npz` file",
        )
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    if height is None or width is None:
        raise UsageError(
            "the size that images should have is not known: the network takes any",
            hint="say it with `--input x:1x3x224x224`",
        )
    return channels or 3, height, width


def read(paths: Sequence[Path], channels: int, height: int, width: int) -> Tensor:
    """The images, resized to cover the size and cropped at the centre: ``(N, C, H, W)``, uint8.

    Raises:
        EnvironmentMissing: Pillow is not installed.
        LoadError: an image is damaged, or has more than 8 bits a channel.
    """
    image_module, operations = _pillow("Image"), _pillow("ImageOps")
    images = torch.empty((len(paths), channels, height, width), dtype=torch.uint8)
    for at, path in enumerate(paths):
        try:
            with image_module.open(path, formats=_FORMATS) as image:
                deep = image.mode.startswith(("I", "F"))
                plain = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:
            raise LoadError(
                "an image cannot be read", where=str(path), found=last_line(error)
            ) from error
        if deep:
            raise LoadError(
                "an image has more than 8 bits a channel",
                where=str(path),
                hint="give such data as floats in an `.npz` file, scaled as the network wants them",
            )
        fitted = operations.fit(plain, (width, height), image_module.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
        images[at] = pixels.view(height, width, channels).permute(2, 0, 1)
    return images


def normaliser(
    normalisation: Mapping[str, Any] | None, channels: int
) -> tuple[tuple[Tensor, Tensor], str]:
    """Mean and deviation, ``(C, 1, 1)``, of pixels in [0, 1]; and what to tell the user.

    Raises:
        UsageError: the model's own are for another number of channels.
    """
    if normalisation is None:
        note = "not normalised: the model does not say by what mean and deviation"
        return (
            torch.zeros(1, 1, 1, dtype=torch.float32),
            torch.ones(1, 1, 1, dtype=torch.float32),
        ), note
    mean, std = (
        torch.tensor(normalisation[key], dtype=torch.float32).view(-1, 1, 1)
        for key in ("mean", "std")
    )
    if {len(mean), len(std)} - {1, channels}:
        raise UsageError(
            f"the model's normalisation does not fit images of {channels} channels",
            found=f"mean {normalisation['mean']}, std {normalisation['std']}",
        )
    said = f"mean {tuple(normalisation['mean'])}, deviation {tuple(normalisation['std'])}"
    return (mean, std), f"normalised as the model says: {said}"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _pillow(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"PIL.{name}")
    except ImportError:
        raise EnvironmentMissing(
            "Pillow is not installed", hint="`pip install pillow`, needed to read images"
        ) from None
