"""Weights (.pt, .pth, .ckpt, .safetensors, ...) put into the network that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError, UsageError, last_line
from normfold.load import choice, difference
from normfold.load.entries import Checkpoint, quoted, read
from normfold.load.factory import build, build_timm, optional
from normfold.load.fit import Fit, Network
from normfold.load.pointer import require_fetched
from normfold.load.types import Found


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU; LoadError when it is damaged, or a Git LFS pointer."""
    safetensors = optional("safetensors.torch", "read .safetensors files")
    require_fetched(path)
    try:
        tensors: dict[str, torch.Tensor] = safetensors.load_file(str(path))
    except Exception as error:
        raise LoadError(
            "the file is truncated or not a safetensors file",
            where=str(path),
            found=last_line(error),
        ) from None
    return tensors


def take(content: Any, factory: str | None, key: str | None, path: Path, seed: int) -> Found:
    """The network of a checkpoint: the module that it holds, or the one of ``factory`` with its weights.

    Which of its entries are the weights is found by fitting names and shapes to the network, at any depth; where
    weights and their average fit, the average is taken.

    Args:
        content: what the file held.
        key: the full name of the entry to take, ``state.ema.params``.

    Raises:
        LoadError: no weights, no network, weights that do not fit it, or several that fit equally.
        UsageError: there is nothing under ``key``.
    """
    if isinstance(content, nn.Module):
        if key is not None:
            raise no_entries(key, f"`{path}` holds one module and no entries")
        return _whole(content, path, factory, [])
    held = read(content, str(path))
    asked = held if key is None else held.under(key)
    own = _modules(asked, factory, path)
    if own and not any(module.state_dict() for module in own.values()):
        name, module = next(iter(own.items()))
        return _whole(module, path, factory, [f"took `{name}` out of the checkpoint"])
    notes: list[str] = []
    if own:
        network, made = Network(next(iter(own.values())), tries=False), None
    else:
        if factory is None:
            raise _no_network(asked, path)
        made = build_timm(factory, seed) if factory.startswith("timm:") else build(factory, seed)
        network = Network(made.module)
        notes += [note for note in made.notes if "random" not in note]
    compared = network.search(asked)
    fit = choice.choose(compared, asked, str(path))
    if fit is None:
        raise difference.unfit(compared, asked, network, factory or "the file", str(path))
    notes = choice.notes(fit, compared, held, asked, network.own) + notes
    if made is None and fit.path in own:
        return _whole(own[fit.path], path, factory, notes)
    _copy(network.module, fit, notes, path)
    if made is None:
        name = type(network.module).__name__
        return Found(network.module, f"the weights `{fit.path}` in the `{name}` of `{path}`", notes)
    source = f"the weights in `{path}` in {made.source}"
    return Found(network.module, source, notes, image_size=made.image_size)


def no_entries(key: str, found: str) -> UsageError:
    """The error for ``--key`` with a MODEL that has no entries to choose from."""
    error = UsageError(
        f"`--key {key}` chooses an entry of a checkpoint, and this model has none", found=found
    )
    error.option = "key"
    return error


def _whole(module: nn.Module, path: Path, factory: str | None, notes: list[str]) -> Found:
    if factory is not None:
        notes.append(f"the file holds a whole module: `{factory}` was not needed")
    if module.training:
        notes.append("model was in train mode: put in eval")
    return Found(module, f"a pickled `{type(module).__name__}` from `{path}`", notes)


def _modules(held: Checkpoint, factory: str | None, path: Path) -> dict[str, nn.Module]:
    """The whole modules that may be the network, all of one structure; none where the factory makes it."""
    if factory is not None and any(not _within(name, held.modules) for name in held.tensors):
        return {}
    states = {name: module.state_dict() for name, module in held.modules.items()}
    found = {name: held.modules[name] for name, state in states.items() if state} or held.modules
    shapes = {
        tuple((key, getattr(value, "shape", None)) for key, value in states[name].items())
        for name in found
    }
    if len(shapes) > 1 or (len(found) > 1 and not any(shapes)):
        raise LoadError(
            "the checkpoint holds several networks",
            where=str(path),
            found=", ".join(f"`{name}`, a `{type(found[name]).__name__}`" for name in found),
            hint=f"choose one, as `--key {next(iter(found))}`",
        )
    return found


def _within(name: str, modules: dict[str, nn.Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))


def _no_network(held: Checkpoint, path: Path) -> LoadError:
    first = next(iter(held.tensors))
    tensors = f"{len(held.tensors)} tensors, the first is `{first}`"
    flat = not held.holders[first]
    return LoadError(
        "the file holds weights without a network",
        where=str(path),
        found=f"a state dict of {tensors}" if flat else f"{quoted(held.entries(), 6)}: {tensors}",
        hint="say what makes the network with `--model pkg.mod:factory`, "
        "for example `--model myproject.models:resnet20`",
    )


def _copy(module: nn.Module, fit: Fit, notes: list[str], path: Path) -> None:
    _match_dtype(module, fit.state.values(), notes)
    if fit.dense:
        notes.append(f"sparse in the file, and made dense: {quoted(fit.dense, 4)}")
    if fit.counters:
        notes.append(
            f"{len(fit.counters)} `num_batches_tracked` counters are not in the file: unused"
        )
    try:
        module.load_state_dict(fit.state, strict=False)
    except Exception as error:
        raise LoadError(
            "the weights could not be copied into the network",
            where=str(path),
            found=last_line(error),
        ) from error


def _match_dtype(module: nn.Module, values: Any, notes: list[str]) -> None:
    stored = {
        value.dtype
        for value in values
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    made = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(stored) == 1 and made and stored != made:
        dtype = stored.pop()
        module.to(dtype)
        notes.append(f"the network was put in {str(dtype).removeprefix('torch.')}, as its weights")
