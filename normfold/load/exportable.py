"""Settings of a transformers model that a captured graph needs: no cache, experts without a loop over data."""

from __future__ import annotations

import inspect
from typing import Any

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
    # T5's decoder, for one, has a config of its own
    own = [getattr(part, "config", None) for part in module.modules()]
    named = [getattr(config, name, None) for name in ("decoder", "text_config", "encoder")]
    caching = [owner for owner in (*own, *named) if getattr(owner, "use_cache", False)]
    for owner in caching:
        owner.use_cache = False  # type: ignore[union-attr]
    if caching:
        notes.append("`use_cache` was switched off: the key/value cache is not an output")
    notes += write_experts(module)
    for part in module.modules():  # any of them may be captured alone
        if hasattr(part, "main_input_name"):
            part.register_forward_pre_hook(_tie_sizes, with_kwargs=True)
    return notes


def write_experts(module: nn.Module) -> list[str]:
    """Compute experts of transformers without a loop over data; a note where there are some."""
    experts = [part for part in module.modules() if _chooses_experts(part)]
    for part in experts:
        choice: Any = part.config
        choice._experts_implementation = _EXPERTS
    return [f"experts are computed as `{_EXPERTS}`, which a graph can hold"] if experts else []


def _tie_sizes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare sizes: those that are equal while a graph is captured stay equal in it.

    Masks are indexed by positions, which would leave their sizes free of those of the tokens.
    """
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    tokens = tensors.get("input_ids")
    for name in ("attention_mask", "token_type_ids"):
        if tokens is not None and name in tensors:
            _ = tokens.shape == tensors[name].shape
    main = tensors.get(str(getattr(module, "main_input_name", "")))
    if main is not None and "decoder_input_ids" in tensors:
        _ = main.shape[:1] == tensors["decoder_input_ids"].shape[:1]


def _chooses_experts(part: nn.Module) -> bool:
    """What the decorator `use_experts_implementation` of transformers leaves on a module."""
    return all(hasattr(part, name) for name in ("config", "has_gate", "is_transposed"))
