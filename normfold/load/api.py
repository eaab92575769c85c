"""`load`: one function for every form of MODEL."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError, NormfoldError, UsageError, boundary, last_line
from normfold.ir.fresh import copied
from normfold.job.source import Task
from normfold.load import decoder, lacking, numpy_files, pickled, state
from normfold.load import factory as factories
from normfold.load import inputs as example_inputs
from normfold.load import part as parts
from normfold.load.absent import absent
from normfold.load.entries import quoted
from normfold.load.exportable import make_exportable
from normfold.load.finite import spoilt
from normfold.load.guess import float_dtype
from normfold.load.limits import limited
from normfold.load.pointer import require_fetched
from normfold.load.trust import Trust
from normfold.load.types import Found, Loaded
from normfold.load.wrapped import unwrapped

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
_AGAIN = "is it whole? write it again with `torch.save`, and check that the copy is complete"
_FORMS = (
    "a `.pt`/`.pth`/`.ckpt` file, a `.safetensors` file with `--model pkg.mod:factory`, a `.pt2` program, "
    "a Hugging Face folder, `timm:NAME`, or `pkg.mod:factory`"
)


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    factory: str | None = None,
    part: str | None = None,
    key: str | None = None,
    inputs: Any = (),
    trust_modules: Sequence[str] = (),
    trust_pickle: bool = False,
    batch: int = 2,
    static: bool = False,
    axes: Mapping[str, Collection[int]] = MappingProxyType({}),
    floats: Sequence[Collection[str]] = (),
    seed: int = 0,
    task: Task | None = None,
) -> Loaded:
    """Load a network and example inputs for it, without running code that a file brings.

    Args:
        model: a path, ``timm:NAME(...)``, ``pkg.mod:factory(...)``, or an nn.Module (copied).
        factory: what makes the network for a file that holds weights only.
        part: path of the submodule that is wanted alone.
        key: the entry of a checkpoint to take, by its full name (``state.ema.params``), where it is not to be
            found by what fits the network.
        inputs: texts ``name:1x3x224x224:f32``, or values in positional order, or by name; a value is a tensor
            or a nest of dictionaries, lists and tuples. Inferred when empty.
        trust_modules: packages or modules, by dotted prefix, whose classes and functions a
            pickled file may use besides torch.nn, torchvision, timm, transformers and normfold.
        trust_pickle: run whatever a pickled file says; only for files that you made.
        batch: first dimension of the inputs; a given 1 becomes this, because a dynamic batch
            is captured at 2.
        static: the batch stays as it is given, and is 1 where nothing is given.
        axes: axes that will be dynamic, by input: one of size 1 among them is a batch, too.
        floats: types of each file that is wanted, by torch's names: a network that is stored in another one
            becomes float32, and so do its inputs.
        seed: of random weights and of the inputs.
        task: what a decoder of transformers is written for: with its cache (`normfold.load.decoder`).

    Raises:
        UsageError: malformed options, a key that is not there, or explicit inputs that do not fit (exit code 2).
        EnvironmentMissing: timm, transformers or safetensors is needed (exit code 3).
        LoadError: the file is damaged, refused as unsafe, or of no known form (exit code 4).
    """
    if batch < 1:
        raise UsageError(f"the batch must be at least 1, not {batch}")
    trust = Trust.of(trust_modules, trust_pickle)
    if trust.modules:
        factories.working_folder_importable()
    require_checkpoint(key, model)
    training: dict[nn.Module, bool] = {}
    if isinstance(model, nn.Module):
        found = _own(model, training)
    else:
        where = os.fspath(model)
        with boundary("the file cannot be used as a model", where, _AGAIN):
            found = _find(where, factory, key, trust, seed)
            inside, notes = unwrapped(found.module)
            found.module = _evaluate(inside)
            found.notes += notes
    _require_python(found)
    lacks = found.lacking.weights.values() if found.lacking is not None else ()
    found.notes += spoilt(found.module, {id(weight) for weight in lacks})
    with boundary("no example inputs can be made for the network", found.source):
        stored = float_dtype(found.module)
        foreign = any(_name(stored) not in row for row in floats)
        single = foreign and found.exported is None and not training
        if foreign and found.exported is not None and torch.finfo(stored).bits > 32:
            name = _name(stored)
            found.notes.append(
                f"inputs and outputs of the program stay in {name}; `--precision fp32` computes in float32"
            )
        if single:
            found.module.float()
        if task is not None:
            if found.lacking is not None:
                _complete(found, example_inputs.choose(found, example_inputs.Asked(seed=seed)))
            found = decoder.with_cache(found, 1 if static else batch, seed)
        elif not training:
            found.notes += make_exportable(found.module)
        asked = example_inputs.Asked(inputs, batch, static, axes, single, seed)
        choose = example_inputs.choose if part is None else _of_part(part)
        chosen = (
            _in_float32(found, asked, stored, choose, inputs) if single else choose(found, asked)
        )
        _complete(found, chosen)
    return Loaded(
        module=found.module,
        args=chosen.args,
        kwargs=chosen.kwargs,
        source=found.source,
        inputs_from=chosen.origin,
        notes=found.notes + chosen.notes,
        exported=found.exported,
        dynamic=found.dynamic,
        free=chosen.free,
        axes=found.axes,
        trials=decoder.trials(found.module, chosen.args, chosen.kwargs, static, seed)
        if task
        else [],
        part=part,
        _training=training,
    )


def _complete(found: Found, chosen: example_inputs.Chosen) -> None:
    """LoadError where outputs depend on weights that are lacking."""
    if found.lacking is not None:
        found.notes.append(
            lacking.require_unused(found.lacking, found.module, chosen.args, chosen.kwargs)
        )
        found.lacking = None


Choose = Callable[[Found, example_inputs.Asked], example_inputs.Chosen]


def _of_part(path: str) -> Choose:
    return lambda found, asked: parts.choose(found, path, asked)


def _in_float32(
    found: Found, asked: example_inputs.Asked, stored: torch.dtype, choose: Choose, given: Any
) -> example_inputs.Chosen:
    """Inputs for a network that was put in float32; where it runs in its stored type only, those ``given``."""
    name = _name(stored)
    try:
        chosen = choose(found, asked)
    except NormfoldError:
        found.module.to(stored)
        chosen = choose(found, replace(asked, inputs=given, single=False))
        found.notes.append(f"the network runs in {name} only: it is captured in that")
        return chosen
    found.notes.append(
        f"weights are stored in {name}; the file, its inputs and outputs are float32, for which its runtime has "
        "the kernels (`--precision` chooses another type)"
    )
    return chosen


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_python(found: Found) -> None:
    if isinstance(found.module, torch.jit.ScriptModule):
        raise LoadError(
            "TorchScript cannot be rewritten: it is compiled code, not an nn.Module",
            where=found.source,
            hint="give the Python module that it was made of, before `torch.jit.script` or `trace`",
        )


def _own(model: nn.Module, training: dict[nn.Module, bool]) -> Found:
    model, notes = unwrapped(model)
    was_training = any(module.training for module in model.modules())
    try:
        mine = copied(model)
        if was_training:
            notes.append("model was in train mode: put in eval on a copy")
    except Exception as error:
        mine = model
        training.update({module: module.training for module in model.modules()})
        notes.append(
            f"the model cannot be copied ({last_line(error)}): it is used itself"
            + (", in eval mode until `Loaded.restore()`" if was_training else "")
        )
    return Found(_evaluate(mine), f"a `{type(model).__name__}` given in Python", notes)


def _evaluate(module: nn.Module) -> nn.Module:
    for child in module.modules():
        # A program's module refuses `eval()`, and `train` may be overridden to do more.
        if child.training:
            child.training = False
    return module


def _find(text: str, factory: str | None, key: str | None, trust: Trust, seed: int) -> Found:
    path = Path(text)
    if text.startswith("timm:"):
        return factories.build_timm(text, seed)
    if path.suffix == ".onnx":
        raise LoadError(
            "ONNX files cannot be loaded: normfold starts from PyTorch",
            where=text,
            hint="give the PyTorch model that the file was exported from",
        )
    if path.is_dir():
        with limited(path):
            return _folder(path, trust, seed)
    if not path.exists():
        if factories.looks_like(text):
            return factories.build(text, seed)
        if ":" in text and os.sep not in text:
            factories.Call.parse(text)
        raise absent(text, _FORMS)
    if not path.is_file():
        raise LoadError("the path is not a file", where=text)
    if path.stat().st_size == 0:
        raise LoadError("the file is empty", where=text)
    with limited(path):
        return _file(path, factory, key, trust, seed)


def _folder(path: Path, trust: Trust, seed: int) -> Found:
    from normfold.load.huggingface import load_folder

    return load_folder(path, trust, seed)


def require_checkpoint(key: str | None, *models: Any) -> None:
    """UsageError where a key is given and none of the models is a checkpoint that has entries."""
    if key is None or any(is_checkpoint(model) or _is_absent(model) for model in models):
        return
    named = [
        f"`{model}`" if isinstance(model, str | os.PathLike) else f"a `{type(model).__name__}`"
        for model in models
    ]
    raise state.no_entries(key, " and ".join(named))


def key_of(model: Any, key: str | None) -> str | None:
    """The key of one of two models: only a checkpoint has entries."""
    return key if is_checkpoint(model) else None


def _is_absent(model: Any) -> bool:
    """A path of nothing has its own error."""
    if not isinstance(model, str | os.PathLike):
        return False
    return ":" not in os.fspath(model) and not Path(model).exists()


def is_checkpoint(model: Any) -> bool:
    """Whether MODEL is a file of weights, or a pickled module: what ``key`` chooses an entry of."""
    if not isinstance(model, str | os.PathLike):
        return False
    path = Path(model)
    if not path.is_file() or path.suffix == ".onnx":
        return False
    return _form(path) in ("safetensors", "pickle", "arrays")


def _form(path: Path) -> str:
    """``program``, ``pickle``, ``safetensors`` or ``arrays``: by the suffix, or by the first bytes."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return "safetensors"
    if suffix == ".pt2":
        return "program"
    if numpy_files.is_one(path):
        return "arrays"
    with open(path, "rb") as file:
        head = file.read(9)
    if suffix in _PICKLED or head.startswith((b"PK", b"\x80")):
        return "program" if pickled.is_program(path) else "pickle"
    header = int.from_bytes(head[:8], "little")
    return "safetensors" if head[8:] == b"{" and header < path.stat().st_size else ""


def _file(path: Path, factory: str | None, key: str | None, trust: Trust, seed: int) -> Found:
    form = _form(path)
    if form == "safetensors":
        return state.take(state.read_safetensors(path), factory, key, path, seed)
    if form == "arrays":
        return _of_arrays(path, factory, key, seed)
    if form == "program":
        from normfold.load.program import load_program

        require_fetched(path)
        return load_program(path, trust)
    if form == "pickle":
        return state.take(pickled.read(path, trust), factory, key, path, seed)
    require_fetched(path)
    suffix = path.suffix.lower()
    raise LoadError(
        f"the suffix `{suffix}` is not known" if suffix else "the file has no suffix",
        where=str(path),
        found="its first bytes are those of no checkpoint, either",
        hint=f"give {_FORMS}",
    )


def _of_arrays(path: Path, factory: str | None, key: str | None, seed: int) -> Found:
    """Arrays by name as the weights of what ``factory`` makes."""
    content = numpy_files.read(path, numpy_files.WEIGHTS)
    if factory is not None and isinstance(content, dict):
        return state.take(content, factory, key, path, seed)
    several = isinstance(content, dict)
    raise LoadError(
        "the file holds arrays, not a network",
        where=str(path),
        found=quoted(content, 4) if several else "arrays without names",
        hint="samples go to `--data`, example inputs to `--inputs`"
        + (
            "; for weights say what makes the network: `--model pkg.mod:factory`" if several else ""
        ),
    )
