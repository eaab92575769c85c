"""Settings of a transformers model that a captured graph needs: no cache, experts without a loop over data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

# Each expert's matrix is gathered for the tokens that it gets, and multiplied in one batch.
_EXPERTS = "batched_mm"


def make_exportable(module: nn.Module) -> list[str]:
    """Switch off what torch.export or ONNX do not take; notes on what was switched.

    Left alone is anything but a transformers model. The module's config is changed: call it on a copy.
    """
    config: Any = getattr(module, "config", None)
    if not hasattr(module, "main_input_name") or config is None:
        return []
    notes = []
    if getattr(config, "use_cache", False):
        config.use_cache = False
        notes.append("`use_cache` was switched off: the key/value cache is not an output")
    for owner in _with_decoders(config):
        if getattr(owner, "use_cache", False):
            owner.use_cache = False
    experts = [part for part in module.modules() if _chooses_experts(part)]
    for part in experts:
        own: Any = part.config
        own._experts_implementation = _EXPERTS
    if experts:
        notes.append(f"experts are computed as `{_EXPERTS}`, which a graph can hold")
    module.register_forward_pre_hook(_tie_sizes, with_kwargs=True)
    return notes


def _tie_sizes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Masks are indexed by positions, which would leave their sizes free of those of the tokens in a graph."""
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    tokens = given.get("input_ids")
    for name in ("attention_mask", "token_type_ids"):
        other = given.get(name)
        if isinstance(tokens, Tensor) and isinstance(other, Tensor) and tokens.dim() == other.dim():
            for one, size in zip(tokens.shape, other.shape, strict=True):
                torch._check(one == size)
    main, decoder = (
        given.get(str(getattr(module, "main_input_name", ""))),
        given.get("decoder_input_ids"),
    )
    if isinstance(main, Tensor) and isinstance(decoder, Tensor):
        torch._check(main.shape[0] == decoder.shape[0])


def _with_decoders(config: Any) -> list[Any]:
    parts = (getattr(config, name, None) for name in ("decoder", "text_config", "encoder"))
    return [part for part in parts if part is not None]


def _chooses_experts(part: nn.Module) -> bool:
    """What the decorator `use_experts_implementation` of transformers leaves on a module."""
    return all(hasattr(part, name) for name in ("config", "has_gate", "is_transposed"))
