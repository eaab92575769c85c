"""State dicts (.pt, .pth, .safetensors) put into the network that a factory makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError, last_line
from normfold.load.factory import build, build_timm, optional
from normfold.load.types import Found


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU; LoadError when it is damaged."""
    safetensors = optional("safetensors.torch", "read .safetensors files")
    try:
        tensors: dict[str, torch.Tensor] = safetensors.load_file(str(path))
    except Exception as error:
        raise LoadError(
            "the file is truncated or not a safetensors file",
            where=str(path),
            found=last_line(error),
        ) from None
    return tensors


def fill(state: dict[str, Any], factory: str | None, path: Path, seed: int) -> Found:
    """Make the network with `factory` and copy the state dict into it, every key accounted for.

    Raises:
        LoadError: no factory, or keys that are missing, unexpected or of another shape.
    """
    if factory is None:
        raise LoadError(
            "the file holds weights without a network",
            where=str(path),
            found=f"a state dict of {len(state)} tensors, the first is `{next(iter(state))}`",
            hint="say what makes the network with `--model pkg.mod:factory`, "
            "for example `--model myproject.models:resnet20(num_classes=10)`",
        )
    made = build_timm(factory, seed) if factory.startswith("timm:") else build(factory, seed)
    module = made.module
    notes = [note for note in made.notes if "random" not in note]
    _match_dtype(module, state, notes)
    _check_keys(module, state, factory, path, notes)
    try:
        module.load_state_dict(state, strict=False)
    except Exception as error:
        raise LoadError(
            "the weights could not be copied into the network",
            where=str(path),
            found=last_line(error),
        ) from error
    source = f"the weights in `{path}` in {made.source}"
    return Found(module, source, notes, image_size=made.image_size)


def _match_dtype(module: nn.Module, state: dict[str, Any], notes: list[str]) -> None:
    stored = {
        value.dtype
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    made = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(stored) == 1 and made and stored != made:
        dtype = stored.pop()
        module.to(dtype)
        notes.append(f"the network was put in {str(dtype).removeprefix('torch.')}, as its weights")


def _check_keys(
    module: nn.Module, state: dict[str, Any], factory: str, path: Path, notes: list[str]
) -> None:
    own = module.state_dict(keep_vars=True)
    present = {id(own[key]) for key in state if key in own}
    # Tied weights are often stored once: safetensors refuses shared memory.
    missing = [key for key in own if key not in state and id(own[key]) not in present]
    counters = [key for key in missing if key.endswith("num_batches_tracked")]
    missing = [key for key in missing if key not in counters]
    if counters:
        notes.append(f"{len(counters)} `num_batches_tracked` counters are not in the file: unused")
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"`{key}` is {_shape(state[key])} in the file and {_shape(own[key])} in the network"
        for key in own
        if key in state and _shape(state[key]) != _shape(own[key])
    ]
    problems = [
        f"{len(items)} {word}: {_few(items)}"
        for word, items in (
            ("missing in the file", [f"`{key}`" for key in missing]),
            ("unknown to the network", [f"`{key}`" for key in unexpected]),
            ("of another shape", shapes),
        )
        if items
    ]
    if problems:
        raise LoadError(
            f"the weights do not fit the network that `{factory}` makes",
            where=str(path),
            found="; ".join(problems),
            hint="give the factory the arguments that the training used, "
            "for example `--model pkg.mod:factory(num_classes=10)`",
        )


def _few(items: list[str]) -> str:
    return ", ".join(items[:4]) + (", ..." if len(items) > 4 else "")


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a scalar" if hasattr(value, "shape") else "no tensor"
