"""From what was loaded to a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import CaptureError, LoadError, UsageError
from normfold.ir import Graph, capture
from normfold.ir.capture import Axes, dynamic_axes, placeholders
from normfold.ir.graph import is_symbolic
from normfold.ir.paths import named_leaves
from normfold.ir.refusal import FIXED
from normfold.load.following import following, refusal
from normfold.load.nested import Call
from normfold.load.part import recorded
from normfold.load.specs import suffix
from normfold.load.types import Loaded

_PARTS = 3  # parts that are tried where the whole cannot be captured
Batch = Literal["dynamic", "static"]
Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def capture_loaded(loaded: Loaded, batch: Batch, axes: Sequence[str] = ()) -> Graph:
    """Capture what `normfold.load.load` returned; its notes travel with the graph.

    ``axes`` names more dynamic axes, each as ``NAME:AXIS``.

    Raises:
        UsageError: as `read_axes`. CaptureError: the network cannot be captured so.
    """
    if batch not in ("dynamic", "static"):
        raise UsageError("`batch` is `dynamic` or `static`", found=f"`{batch}`")
    wanted = {name: {*free} for name, free in loaded.axes.items()}
    asked = read_axes(axes)
    for name, own in asked.items():
        wanted[name] = wanted.get(name, set()) | own
    if loaded.exported is not None:
        graph = capture(loaded.exported, loaded.args, loaded.kwargs)
    else:
        example = (loaded.module, loaded.args, loaded.kwargs)
        _require_axes(example, asked, loaded.part)
        follow = following(*example, asked, batch == "dynamic")
        try:
            with follow.tied(loaded.module):
                graph, notes = _captured(loaded, batch == "dynamic", follow.added_to(wanted))
        except CaptureError as error:
            raise _with_refusal(error, example, asked) from error
        graph.notes += [*follow.notes(wanted), *notes]
    graph.notes = [*loaded.notes, *graph.notes]
    graph.trials = [tuple(pytree.tree_leaves(call)) for call in loaded.trials]
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
        raise _with_parts(_with_static_hint(error, example), example) from error


def _require_axes(example: Example, axes: Axes, part: str | None) -> None:
    """Refuse axes that the inputs have not, and those of size 1, which torch.export takes for fixed."""
    module, args, kwargs = example
    leaves = named_leaves(module.forward, args, kwargs)
    for name, wanted in axes.items():
        leaf = dict(leaves).get(name)
        shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
        shown = "x".join(map(str, shape))
        if any(not 0 <= axis < len(shape) for axis in wanted):
            hint = "write NAME:AXIS, as in `--dynamic input_ids:1`"
            if part is not None:
                hint = (
                    f"`--dynamic` names inputs of the part, `{part}`; `--input` those of the whole"
                )
            texts = ", ".join(
                f"{key} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
                for key, value in leaves
            )
            raise UsageError(
                f"`{name}` has no axis {', '.join(map(str, sorted(wanted)))} to be dynamic",
                found=f"inputs{f' of `{part}`' if part else ''}: {texts}",
                hint=hint,
            )
        single = [axis for axis in sorted(wanted) if shape[axis] == 1]
        if single:
            larger = "x".join("8" if axis in single else str(n) for axis, n in enumerate(shape))
            raise UsageError(
                f"`--dynamic {name}:{single[0]}`: a free axis needs a size of at least 2 in the example",
                found=f"`{name}` of {shown}",
                hint=f"give a larger example, as in `--input {name}:{larger}`",
            )


def _with_refusal(error: CaptureError, example: Example, axes: Axes) -> CaptureError:
    """Where the network itself refuses another size of a free axis, that says more than torch.export."""
    said = refusal(*example, axes)
    if not said:
        return error
    return CaptureError(
        error.what,
        where=error.where,
        found="; ".join(filter(None, [error.found, said])),
        hint=f"name an axis that must follow it, too (`--dynamic NAME:AXIS`); or else: {error.hint}",
    )


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


def _with_parts(error: CaptureError, example: Example) -> CaptureError:
    """Name parts of the network that can be captured alone, of those that `forward` calls."""
    module, args, kwargs = example
    sizes = {name: _parameters(child) for name, child in module.named_children()}
    large = sorted((name for name, size in sizes.items() if size), key=lambda name: -sizes[name])
    try:
        calls = recorded(module, args, kwargs, large)
    except LoadError:
        return error
    found = [
        name for name in large[:_PARTS] if name in calls and _captures(module, name, calls[name])
    ]
    if not found:
        return error
    texts = ", ".join(f"`--module {name}`" for name in found)
    hint = f"{error.hint or ''}; parts of it can be converted alone: {texts}".removeprefix("; ")
    return CaptureError(error.what, where=error.where, found=error.found, hint=hint)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _captures(module: nn.Module, name: str, called: Call) -> bool:
    if not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(called)):
        return False
    try:
        capture(module.get_submodule(name), called[0], called[1], None)
    except CaptureError:
        return False
    return True


def _with_static_hint(error: CaptureError, example: Example) -> CaptureError:
    """Where a fixed size is the way out, the options that ask for it."""
    if FIXED not in (error.hint or ""):
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
        hint=f"{error.hint}; every size fixed: `--batch static {sizes}`{also}",
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
