"""The weights of a Hugging Face folder: which files they are, what is missing, and other formats by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normfold.errors import LoadError
from normfold.load import pickled
from normfold.load.folder_config import no_config, read_any_json, read_json
from normfold.load.pointer import require_fetched
from normfold.load.trust import Trust

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "adapter_model.bin")


def check_pointers(folder: Path) -> None:
    """Raise LoadError where a file is a Git LFS pointer: the folder was cloned without its large files."""
    for file in sorted(
        [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    ):
        if file.is_file():
            require_fetched(file)


def refuse_other_formats(folder: Path) -> None:
    """Raise LoadError where the folder is not one of transformers: diffusers, GGUF, ONNX, or nothing known."""
    names = sorted(item.name for item in folder.iterdir())
    if "model_index.json" in names:
        raise _diffusers(folder)
    if "config.json" in names or "adapter_config.json" in names or "modules.json" in names:
        return
    gguf = [name for name in names if name.endswith(".gguf")]
    onnx = [name for name in names if name.endswith(".onnx")]
    if gguf:
        raise _gguf(folder, gguf)
    if onnx:
        raise _onnx(folder, onnx)
    raise no_config(folder)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights of a whole model that can be read."""
    return any((folder / name).is_file() for name in SAFETENSORS) or bool(_pickles(folder))


def read_weights(folder: Path, trust: Trust, always: bool = False) -> dict[str, Any] | None:
    """Pickled weights as a state dict, read without running them; None where transformers reads the files.

    Args:
        always: read safetensors, too.

    Raises:
        LoadError: no weights, weights of another framework, a shard that is missing, an unsafe pickle.
    """
    shards = _shards(folder)
    if any((folder / name).is_file() for name in SAFETENSORS):
        if not always:
            return None
        from safetensors.torch import load_file

        state: dict[str, Any] = {}
        for name in shards or ["model.safetensors"]:
            state.update(load_file(folder / name))
        return state
    pickles = _pickles(folder)
    if not pickles:
        raise _no_weights(folder)
    state = {}
    for path in pickles:
        content = pickled.read(path, trust)
        if not isinstance(content, dict):
            found = f"an object of type `{type(content).__name__}`"
            raise LoadError("the weights are not a state dict", where=str(path), found=found)
        state.update(content)
    return state


def _pickles(folder: Path) -> list[Path]:
    named = sorted(folder.glob("pytorch_model*.bin"))
    return named or sorted(path for path in folder.glob("*.bin") if path.name not in _NOT_WEIGHTS)


def _shards(folder: Path) -> list[str]:
    """Files that an index names; they lie in the folder, for transformers would read others, too."""
    shards: list[str] = []
    for path in sorted(folder.glob("*.index.json")):
        names = read_json(path).get("weight_map", {})
        strange = sorted(
            {str(name) for name in names.values() if Path(str(name)).name != name}
            if isinstance(names, dict)
            else {"no `weight_map`"}
        )
        if strange:
            raise LoadError(
                "the index of the weights names files outside the folder",
                where=str(path),
                found=", ".join(f"`{name}`" for name in strange[:3]),
                hint="an index names files beside it, without a folder",
            )
        wanted = sorted(set(names.values()))
        lost = [name for name in wanted if not (folder / name).is_file()]
        if lost and path.name != "tf_model.h5.index.json":
            raise LoadError(
                f"{len(lost)} of {len(wanted)} files of weights are missing",
                where=str(path),
                found=f"not in the folder: {_listed(lost)}",
                hint="the download is not complete: fetch these files, too",
            )
        if path.name == SAFETENSORS[1]:
            shards = wanted
    return shards


def _no_weights(folder: Path) -> LoadError:
    names = sorted(item.name for item in folder.iterdir())
    foreign = [
        name
        for name in names
        if name.startswith(("tf_model", "flax_model")) or name.endswith(".ckpt.index")
    ]
    gguf = [name for name in names if name.endswith(".gguf")]
    onnx = [name for name in names if name.endswith(".onnx")]
    if not onnx and (folder / "onnx").is_dir():
        onnx = [f"onnx/{path.name}" for path in sorted((folder / "onnx").glob("*.onnx"))]
    if foreign:
        kind = "Flax" if foreign[0].startswith("flax") else "TensorFlow"
        option = "from_flax" if kind == "Flax" else "from_tf"
        return LoadError(
            f"the folder has weights of {kind} only",
            where=str(folder),
            found=_listed(foreign),
            hint=f"transformers 4 turns them into PyTorch's: `AutoModel.from_pretrained(folder, {option}=True)"
            ".save_pretrained(other)`",
        )
    if gguf:
        return _gguf(folder, gguf)
    if onnx:
        return _onnx(folder, onnx)
    only = names == ["config.json"]
    return LoadError(
        "the folder has no weights" + (", only `config.json`" if only else ""),
        where=str(folder),
        found=None if only else ", ".join(names[:6]),
        hint="`model.safetensors` or `pytorch_model.bin` is expected next to config.json",
    )


def _gguf(folder: Path, names: list[str]) -> LoadError:
    return LoadError(
        "GGUF files hold quantised weights of llama.cpp, which normfold does not read",
        where=str(folder),
        found=_listed(names),
        hint="give the folder with the float checkpoint (config.json and *.safetensors) that they were made from",
    )


def _onnx(folder: Path, names: list[str]) -> LoadError:
    return LoadError(
        "the folder has ONNX files only: normfold starts from PyTorch",
        where=str(folder),
        found=_listed(names),
        hint="give the folder with the PyTorch weights that the files were exported from",
    )


def _diffusers(folder: Path) -> LoadError:
    content = read_any_json(folder / "model_index.json")
    parts = content.items() if isinstance(content, dict) else ()
    known = [
        name
        for name, kind in parts
        if isinstance(kind, list)
        and kind[:1] == ["transformers"]
        and Path(name).name == name
        and has_config(folder / name)
    ]
    hint = "build one of its networks in Python and give `--model pkg.mod:factory` with its weights file"
    if known:
        hint = (
            f"give the subfolder of a transformers network ({_listed(known)}); "
            f"for the others {hint}"
        )
    return LoadError(
        "the folder is a pipeline of diffusers, which is several networks",
        where=str(folder / "model_index.json"),
        hint=hint,
    )


def has_config(folder: Path) -> bool:
    """Whether the folder has a `config.json` of transformers."""
    file = folder / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"`{name}`" for name in names[:6]) + more
