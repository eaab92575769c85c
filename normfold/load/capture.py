"""From what was loaded to a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from normfold.errors import CaptureError, UsageError
from normfold.graph import Graph, capture
from normfold.graph.capture import Axes, dynamic_axes, placeholders
from normfold.graph.graph import is_symbolic
from normfold.graph.paths import named_leaves
from normfold.load.api import load
from normfold.load.specs import suffix
from normfold.load.types import Loaded

Batch = Literal["dynamic", "static"]
Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def capture_model(
    model: Any, inputs: Any = (), batch: Batch = "dynamic", axes: Sequence[str] = (), **loading: Any
) -> Graph:
    """Load any MODEL and capture it; ``loading`` goes to `normfold.load.load`."""
    asked = read_axes(axes)
    loaded = load(model, inputs=inputs, static=batch == "static", axes=asked, **loading)
    return capture_loaded(loaded, batch, axes)


def capture_loaded(loaded: Loaded, batch: Batch, axes: Sequence[str] = ()) -> Graph:
    """Capture what `normfold.load.load` returned; its notes travel with the graph.

    ``axes`` names more dynamic axes, each as ``NAME:AXIS``.

    Raises:
        UsageError: as `read_axes`. CaptureError: the network cannot be captured so.
    """
    if batch not in ("dynamic", "static"):
        raise UsageError("`batch` is `dynamic` or `static`", found=f"`{batch}`")
    wanted = read_axes(axes)
    if loaded.exported is not None:
        graph = capture(loaded.exported, loaded.args, loaded.kwargs)
    else:
        graph, notes = _captured(loaded, batch == "dynamic", wanted)
        graph.notes += notes
    graph.notes = [*loaded.notes, *graph.notes]
    return graph


def _captured(loaded: Loaded, batch: bool, axes: Axes) -> tuple[Graph, list[str]]:
    """The graph, with the axes free that the loader suggests if it can be; notes on those that cannot."""
    example = (loaded.module, loaded.args, loaded.kwargs)
    hoped = loaded.free if batch else {}
    try:
        return _with_axes(example, batch, axes, hoped)
    except CaptureError as error:
        if hoped:
            try:
                graph, _ = _with_axes(example, batch, axes, {})
            except CaptureError:
                pass  # the first attempt's reason is the one of what was asked for
            else:
                return graph, [_stays(hoped, error.found or error.what)]
        raise _with_static_hint(error, example) from error


def _with_axes(example: Example, batch: bool, axes: Axes, hoped: Axes) -> tuple[Graph, list[str]]:
    module, args, kwargs = example
    dynamic = dynamic_axes(module, args, kwargs, batch, axes, hoped) if batch or axes else None
    graph = capture(module, args, kwargs, dynamic)
    fixed = {
        name: [
            axis for axis in hoped.get(name, ()) if not is_symbolic(node.meta["val"].shape[axis])
        ]
        for name, node in zip(graph.input_names, placeholders(graph), strict=True)
    }
    fixed = {name: found for name, found in fixed.items() if found}
    return graph, [_stays(fixed, "the network fixes it")] if fixed else []


def _stays(axes: Axes, why: str) -> str:
    names = ", ".join(f"`{name}:{axis}`" for name, found in axes.items() for axis in found)
    return f"{names} cannot vary: {why}"


def _with_static_hint(error: CaptureError, example: Example) -> CaptureError:
    """Where a fixed size is the way out, the options that ask for it."""
    if "--batch static" not in (error.hint or ""):
        return error
    leaves = named_leaves(example[0].forward, example[1], example[2])
    sizes = " ".join(
        f"--input {name}:{'x'.join(map(str, leaf.shape))}{suffix(leaf.dtype)}"
        for name, leaf in leaves
        if isinstance(leaf, Tensor) and leaf.dim()
    )
    layers = [
        f"`{name}` ({type(part).__name__})"
        for name, part in example[0].named_modules()
        if isinstance(part, nn.RNN)
    ]
    also = f"; {', '.join(layers)} runs step by step, so its length is fixed" if layers else ""
    return CaptureError(
        error.what,
        where=error.where,
        found=error.found,
        hint=f"{error.hint}; this size fixed: `--batch static {sizes}`{also}",
    )


def read_axes(texts: Sequence[str]) -> dict[str, set[int]]:
    """``NAME:AXIS`` texts as axes by name.

    Raises:
        UsageError: a text of another form.
    """
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
