"""From what was loaded to a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from normfold.errors import UsageError
from normfold.graph import Graph, capture
from normfold.graph.capture import dynamic_axes
from normfold.load.api import load
from normfold.load.types import Loaded

Batch = Literal["dynamic", "static"]


def capture_model(
    model: Any, inputs: Sequence[Any] = (), batch: Batch = "dynamic", **loading: Any
) -> Graph:
    """Load any MODEL and capture it; ``loading`` goes to `normfold.load.load`."""
    return capture_loaded(load(model, inputs=inputs, **loading), batch)


def capture_loaded(loaded: Loaded, batch: Batch, axes: Sequence[str] = ()) -> Graph:
    """Capture what `normfold.load.load` returned; its notes travel with the graph.

    ``axes`` names more dynamic axes, each as ``NAME:AXIS``.
    """
    if batch not in ("dynamic", "static"):
        raise UsageError("`batch` is `dynamic` or `static`", found=f"`{batch}`")
    if loaded.exported is not None:
        graph = capture(loaded.exported, loaded.args, loaded.kwargs)
    else:
        wanted = _axes(axes)
        example = (loaded.module, loaded.args, loaded.kwargs)
        free = batch == "dynamic"
        dynamic = dynamic_axes(*example, free, wanted) if free or wanted else None
        graph = capture(*example, "batch" if free and not wanted else dynamic)
    graph.notes = [*loaded.notes, *graph.notes]
    return graph


def _axes(texts: Sequence[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for text in texts:
        name, colon, axes = text.rpartition(":")
        if not colon or not name or not all(axis.isdigit() for axis in axes.split(",")):
            raise UsageError(
                "a dynamic axis cannot be read",
                found=f"`{text}`",
                hint="write NAME:AXIS, as in `input_ids:1`",
            )
        found.setdefault(name, set()).update(map(int, axes.split(",")))
    return found


def input_normalisation(module: Any) -> dict[str, Any] | None:
    """What a timm model says that its inputs, from 0 to 1, are normalised by: ``mean`` and ``std``."""
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, dict) or not {"mean", "std"} <= set(config):
        return None
    return {"mean": list(config["mean"]), "std": list(config["std"])}
