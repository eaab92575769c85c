"""Settings of a transformers model that a captured graph needs: no cache, experts without a loop over data."""

from __future__ import annotations

from typing import Any

from torch import nn

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
    return notes


def _with_decoders(config: Any) -> list[Any]:
    parts = (getattr(config, name, None) for name in ("decoder", "text_config", "encoder"))
    return [part for part in parts if part is not None]


def _chooses_experts(part: nn.Module) -> bool:
    """What the decorator `use_experts_implementation` of transformers leaves on a module."""
    return all(hasattr(part, name) for name in ("config", "has_gate", "is_transposed"))
