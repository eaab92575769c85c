"""Back to PyTorch: the state dict of the result under the original's own names, and the lines that apply it.

``NAME.safetensors`` holds the tensors. ``NAME_apply.py`` needs torch and safetensors, and nothing of normfold: its
``apply(module)`` changes a fresh original in place (norms that are gone become Identity, LayerNorms become
RMSNorms, convolutions get the bias that a fold made) and loads the tensors strictly. Where the original is from a
Hugging Face folder whose class can hold the result, ``NAME-hf`` is a folder for ``from_pretrained`` as well.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normfold.errors import EnvironmentMissing, ExportError, UsageError, last_line
from normfold.files import atomic
from normfold.ir import Graph
from normfold.report.events import Noted
from normfold.targets.attribution import Attribution
from normfold.targets.order import Draft, Order, Runs
from normfold.targets.pretrained import write_folder
from normfold.targets.reloaded import runner, unloaded
from normfold.targets.surgery import Surgery, script_text


def write_module(order: Order) -> Iterator[Draft]:
    """The state dict with the file that applies it; then a folder for ``from_pretrained``, or a note why not.

    Raises:
        ExportError: the result cannot be expressed by the original's modules. UsageError: the original is not a
            module (a ``.pt2`` program), or would be overwritten.
    """
    captured = order.captured
    if captured is None or captured.original is None:
        raise UsageError(
            "a state dict belongs to a module, and the original is a program",
            hint="`--export pt2` writes a program; or give the module that the program was exported from",
        )
    surgery = Attribution(captured, order.graph).surgery
    path, script = order.path(".safetensors"), order.path("_apply.py")
    _require_other(order, path)
    _save(surgery, path)
    script.write_text(script_text(surgery, path.name), encoding="utf-8")
    published = str(order.folder / script.name)
    order.emit(
        Noted(
            "back in PyTorch, with `module` the original: "
            f"`import runpy; apply = runpy.run_path({published!r})['apply']; module = apply(module)`"
        )
    )
    yield Draft(path, order.target.runtime, lambda: _runs(captured, script), (script,))
    if order.source is not None and (order.source / "config.json").is_file():
        yield from write_folder(order, captured, surgery)


def _require_other(order: Order, path: Path) -> None:
    published = order.folder / path.name
    source = order.source
    if source is not None and source.exists() and published.exists() and source.samefile(published):
        raise UsageError(
            "the file to write is the one that the model was read from",
            where=str(published),
            hint="write to another folder with `-o`",
        )


def _save(surgery: Surgery, path: Path) -> None:
    from safetensors.torch import save

    tensors = {
        key: value.detach().contiguous().clone()
        for key, value in surgery.state.items()
        if key not in surgery.ties
    }
    with atomic(path) as (file,):
        file.write(save(tensors, {"format": "pt"}))


def _runs(captured: Graph, script: Path) -> Runs:
    assert captured.original is not None
    try:
        module = runpy.run_path(str(script))["apply"](unloaded(captured.original))
    except (
        Exception
    ) as error:  # of a strict load, or of a class that does not let itself be changed
        raise ExportError(
            "the file that applies the result does not work on a copy of the original",
            where=script.name,
            found=last_line(error),
        ) from error
    yield "module", runner(captured, module)


def runs(path: Any) -> Runs:
    """A state dict alone is not run: it needs the module that it is for.

    Raises:
        EnvironmentMissing: always.
    """
    raise EnvironmentMissing("a state dict is run by the module that it is for", found=str(path))
    yield
