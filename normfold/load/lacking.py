"""Weights of a Hugging Face folder that the network lacks, or has in other shapes.

What is lacking is NaN until the network has run once: where an output then is NaN it was needed, and that is an
error. A part that was asked for alone, or a weight of the training, may do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import LoadError
from normfold.load import probe
from normfold.load.difference import layers, shape
from normfold.load.entries import quoted

_SHOWN = 4


@dataclass(frozen=True)
class Lacking:
    """Weights that are not in the folder, by name, and the error where they are needed."""

    weights: dict[str, Tensor]
    error: Callable[[], LoadError]


def compare(
    module: Any, info: dict[str, Any], folder: Path, given: set[str], auto_map: bool
) -> tuple[Lacking | None, list[str]]:
    """What transformers reports of loading (``info``), as weights that are lacking, and notes on those unused.

    Args:
        given: names of weights that an adapter brings.
        auto_map: the folder brings code, which is not run.

    Raises:
        LoadError: none of the weights fits, or some have another shape.
    """
    _require_shapes(module, info, folder, given)
    state = module.state_dict(keep_vars=True)
    unexpected = sorted(info.get("unexpected_keys") or ())
    weights = {
        name: state[name]
        for name in sorted(set(info.get("missing_keys") or ()) - given)
        if name in state and state[name].is_floating_point()  # whole numbers are made by the config
    }
    notes = []
    if unexpected:
        unused = quoted(unexpected, _SHOWN)
        notes.append(f"{len(unexpected)} weights of the folder are not used: {unused}")
    if not weights:
        return None, notes
    found = Lacking(weights, lambda: _error(module, weights, unexpected, folder, auto_map))
    if auto_map or set(weights) >= {name for name, _ in module.named_parameters()}:
        raise found.error()
    _fill(found, float("nan"))
    return found, notes


def require_unused(lacking: Lacking, module: nn.Module, args: Any, kwargs: Any) -> str:
    """A note that names weights on which no output depends on these inputs; they are then zero.

    Raises:
        LoadError: an output depends on them.
    """
    outputs = probe.run(module, args, kwargs)
    floats = [
        leaf
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not floats or any(bool(leaf.isnan().any()) for leaf in floats):
        raise lacking.error()
    _fill(lacking, 0.0)
    names = quoted(lacking.weights, _SHOWN)
    return f"not in the folder, and zero: {names}; no output on the example inputs depends on it"


@torch.no_grad()
def _fill(lacking: Lacking, value: float) -> None:
    for weight in lacking.weights.values():
        weight.fill_(value)


def _error(
    module: Any, missing: Iterable[str], unexpected: list[str], folder: Path, auto_map: bool
) -> LoadError:
    missing = list(missing)
    present = set(module.state_dict()) - set(missing)
    found = f"{len(missing)} missing: {quoted(missing, _SHOWN)}"
    if unexpected:
        found += f"; not used are {quoted(unexpected, _SHOWN)}"
    if auto_map:
        hint = "the weights may belong to the code that the folder brings, which is not run"
    elif unexpected or not present or _lacks_head(module, missing):
        hint = "is `architectures` in config.json the class that was saved?"
        if _lacks_head(module, missing):
            prefix = module.base_model_prefix
            hint += f" Without a head the network is whole: `--module {prefix}` takes that"
    elif absent := [layer for layer in layers(missing, present) if layer not in missing]:
        hint = (
            f"the folder has nothing of {quoted(absent, _SHOWN)}: is its config.json that of these weights, "
            "and is its file of weights complete?"
        )
    else:
        hint = "its file of weights is not complete: save or fetch it again"
    return LoadError(
        f"weights of `{type(module).__name__}` are not in the folder",
        where=str(folder),
        found=found,
        hint=hint,
    )


def _lacks_head(module: Any, missing: list[str]) -> bool:
    """Whether the network without a head is whole."""
    prefix = module.base_model_prefix
    return isinstance(getattr(module, prefix, None), nn.Module) and not any(
        name.startswith(f"{prefix}.") for name in missing
    )


def _require_shapes(module: Any, info: dict[str, Any], folder: Path, given: set[str]) -> None:
    """The folder's weights have the shapes that its config asks for; LoadError otherwise."""
    other = sorted(item for item in info.get("mismatched_keys") or () if item[0] not in given)
    if other:
        raise LoadError(
            f"weights of `{type(module).__name__}` have other shapes in the folder than config.json says",
            where=str(folder),
            found=f"{len(other)} of another shape: "
            + ", ".join(
                f"`{name}` is {shape(stored)} in the file and {shape(asked)} by the config"
                for name, stored, asked in other[:_SHOWN]
            ),
            hint="is config.json that of these weights?",
        )
