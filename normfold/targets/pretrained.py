"""A Hugging Face folder for the result, where the original's class can hold it with other weights alone.

Folded gains are ones. A batch norm that was folded stays one: with mean 0, variance 1 - eps and weight 1 it only
adds its bias, which is the bias that the fold gave to the convolution in front of it.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normfold.errors import ExportError, last_line
from normfold.ir import Graph
from normfold.progress import without_bars
from normfold.report.events import Noted
from normfold.targets.order import Draft, Order, Runs
from normfold.targets.reloaded import runner, unloaded
from normfold.targets.surgery import Surgery

_BESIDE = (".json", ".txt", ".model", ".jinja")  # tokenizers, image processors, generation
_WEIGHTS = "model.safetensors"


def write_folder(order: Order, captured: Graph, surgery: Surgery) -> Iterator[Draft]:
    """``NAME-hf`` with `config.json` and what lies beside it as they were, or a note why there is none."""
    name = type(captured.original).__name__
    why = (
        ""
        if hasattr(captured.original, "save_pretrained")
        else f"`{name}` is not a model of transformers"
    )
    if why := why or why_not(surgery, name):
        order.emit(Noted(f"no folder for `from_pretrained` is written: {why}"))
        return
    assert order.source is not None
    folder = order.path("-hf")
    _write(order.source, folder, captured, surgery)
    where = str(order.folder / folder.name)
    more = "".join(f", {key}={value}" for key, value in _arguments(captured.original).items())
    order.emit(Noted(f"a Hugging Face folder: `{name}.from_pretrained({where!r}{more})`"))
    yield Draft(
        folder / _WEIGHTS,
        order.target.runtime,
        lambda: _runs(captured, folder),
        tuple(path for path in sorted(folder.iterdir()) if path.name != _WEIGHTS),
        within=folder.name,
    )


def why_not(surgery: Surgery, name: str) -> str:
    """What a class has no weights for; empty if it can hold the result."""
    if surgery.norms:
        path = next(iter(surgery.norms))
        return f"`{path}` became an RMSNorm, which `{name}` does not have there"
    if surgery.gone_norms:
        return f"`{surgery.gone_norms[0]}` is gone, and no weights of it do nothing"
    computed = [path for path, *_ in surgery.plain] + list(surgery.layers)
    if computed:
        return f"`{name}` computes the weight of `{computed[0]}`"
    if surgery.buffers:
        return f"checkpoints of `{name}` leave out `{surgery.buffers[0]}`"
    made = [key for key in surgery.made if key not in surgery.moves]
    return f"`{name}` does not have a `{made[0]}` of this shape of its own" if made else ""


def _write(source: Path, folder: Path, captured: Graph, surgery: Surgery) -> None:
    import torch

    assert captured.original is not None
    model: Any = unloaded(captured.original)
    state = dict(surgery.own)
    state |= {bias: surgery.state[made] for made, bias in surgery.moves.items()}
    model.load_state_dict(state)
    folder.mkdir()
    with torch.no_grad(), without_bars():
        # under the names that checkpoints of this class have, which may be older than those of its modules
        model.save_pretrained(str(folder), max_shard_size="1000GB")
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _BESIDE and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def _arguments(original: Any) -> dict[str, Any]:
    """What `from_pretrained` needs for a network that was made without its pooler."""
    takes = "add_pooling_layer" in inspect.signature(type(original).__init__).parameters
    return (
        {"add_pooling_layer": False}
        if takes and getattr(original, "pooler", original) is None
        else {}
    )


def _runs(captured: Graph, folder: Path) -> Runs:
    original: Any = captured.original
    try:
        with without_bars():
            module, info = type(original).from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto",
                output_loading_info=True,
                **_arguments(original),
            )
    except Exception as error:  # transformers raises all kinds
        raise ExportError(
            "transformers cannot load the folder that was written",
            where=folder.name,
            found=last_line(error),
        ) from error
    if missing := sorted(info.get("missing_keys") or ()):
        raise ExportError(
            "the folder that was written lacks weights", where=folder.name, found=missing[0]
        )
    if hasattr(original.config, "use_cache"):
        module.config.use_cache = original.config.use_cache
    yield "from_pretrained", runner(captured, module.eval())
