"""Hugging Face folders: config.json and safetensors, read by transformers without remote code."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from normfold.errors import EnvironmentMissing, LoadError, last_line
from normfold.load import pickled
from normfold.load.factory import optional, seeded
from normfold.load.trust import Trust
from normfold.load.types import Found, Wanted


def load_folder(folder: Path, trust: Trust, seed: int) -> Found:
    """The model that `config.json` names, with the folder's weights in their stored dtype.

    Raises:
        LoadError: no config or weights, an unknown architecture, remote code, unsafe pickle.
    """
    config = _read_config(folder)
    name = _architecture(config, folder)
    weights = _weights(folder, trust)
    notes = [] if weights is None else ["weights are pickled: read without running them"]
    transformers: Any = optional("transformers", "read Hugging Face folders")
    try:
        transformers.PreTrainedModel  # noqa: B018  imported now, with all that it needs
    except Exception as error:  # what a broken neighbour such as torchvision raises
        raise EnvironmentMissing(
            "`transformers` is installed and cannot be imported", found=last_line(error)
        ) from error
    cls: Any = getattr(transformers, name, None) if name else transformers.AutoModel
    if cls is None:
        close = difflib.get_close_matches(name, dir(transformers), n=2, cutoff=0.75)
        raise LoadError(
            f"transformers {transformers.__version__} has no `{name}`",
            where=str(folder / "config.json"),
            hint=f"did you mean {' or '.join(f'`{c}`' for c in close)}?"
            if close
            else "the model may need a newer transformers",
        )
    if name and not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise LoadError(f"`{name}` is not a model class", where=str(folder / "config.json"))
    try:
        with _quiet(), seeded(seed):
            options: dict[str, Any] = {
                "local_files_only": True,
                "use_safetensors": True,  # torch.load is never used: pickles are read by us
                "trust_remote_code": False,
                "dtype": "auto",
                "output_loading_info": True,
            }
            if config.get("use_pretrained_backbone"):  # its weights are in the folder: no download
                options["use_pretrained_backbone"] = False
            if weights is None:
                module, info = cls.from_pretrained(str(folder), **options)
            else:
                known = transformers.AutoConfig.from_pretrained(
                    str(folder), trust_remote_code=False
                )
                make = cls if name else transformers.AutoModel._model_mapping[type(known)]
                module, info = make.from_pretrained(
                    None, config=known, state_dict=weights, **options
                )
    except Exception as error:
        raise LoadError(
            f"transformers could not load the folder as `{name or 'AutoModel'}`",
            where=str(folder),
            found=last_line(error),
        ) from error
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        shown = ", ".join(f"`{key}`" for key in missing[:4])
        notes.append(f"{len(missing)} weights are not in the folder and are random: {shown}")
    return Found(module, f"`{type(module).__name__}` from the folder `{folder}`", notes)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise LoadError(
            "the folder has no `config.json`",
            where=str(folder),
            hint="a folder must be a Hugging Face model (config.json and *.safetensors); "
            "otherwise give the checkpoint file itself",
        )
    config = _read_json(file)
    remote = sorted(_remote_code(config))
    if remote:
        raise LoadError(
            "the model needs code that comes with the folder or from a hub; it is not run",
            where=str(file),
            found=", ".join(remote),
            hint="install that code as a package, build the model in Python and give "
            "`pkg.mod:factory`, or use the version of the model that transformers has",
        )
    return config


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise LoadError(
            f"`{file.name}` is not valid", where=str(file), found=last_line(error)
        ) from None
    return content


def _remote_code(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("attribute_map", "transformers_weights"):
                # one name for another, and files of another folder: `_leads_away` would look in vain
                yield f"`{key}`: {value}"
            elif key == "auto_map":
                yield f"`auto_map`: {', '.join(map(str, value))}"
            elif _leads_away(key, str(value or "")):
                yield f"`{key}`: {value}"
            else:
                yield from _remote_code(value)
    elif isinstance(config, list):
        for value in config:
            yield from _remote_code(value)


def _leads_away(key: str, value: str) -> bool:
    """transformers takes attention kernels from a hub, and timm models and weights from anywhere."""
    if key.endswith("_implementation"):
        return "/" in value or value.startswith("flash")  # others are in transformers and torch
    if key in ("architecture", "backbone"):
        return ":" in value
    return key == "checkpoint_path" and bool(value)


def _architecture(config: dict[str, Any], folder: Path) -> str:
    names = config.get("architectures") or []
    if not names and "model_type" not in config:
        raise LoadError(
            "`config.json` names neither `architectures` nor `model_type`",
            where=str(folder / "config.json"),
            hint="is this the folder of a transformers model? a timm hub folder loads with "
            "`--model timm:NAME` and its weights file",
        )
    return str(names[0]) if names else ""


def _weights(folder: Path, trust: Trust) -> dict[str, Any] | None:
    """Pickled weights as a state dict, read without running them; None where transformers reads the files."""
    _check_index(folder)
    if any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    ):
        return None
    pickles = sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("*.bin"))
    if not pickles:
        raise LoadError(
            "the folder has no weights",
            where=str(folder),
            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]),
            hint="`model.safetensors` or `pytorch_model.bin` is expected next to config.json",
        )
    state: dict[str, Any] = {}
    for path in pickles:
        content = pickled.read(path, trust)
        if not isinstance(content, dict):
            found = f"an object of type `{type(content).__name__}`"
            raise LoadError("the weights are not a state dict", where=str(path), found=found)
        state.update(content)
    return state


def _check_index(folder: Path) -> None:
    """Weights lie in the folder: an index may name other files, which transformers would read."""
    for path in folder.glob("*.index.json"):
        names = _read_json(path).get("weight_map", {})
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as hf_logging

    level, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()


def wanted(module: Any, batch: int) -> tuple[Wanted, ...]:
    """Inputs that a transformers model's config asks for.

    Images are ``(batch, channels, size, size)``, tokens ``(batch, min(16, positions))``, audio
    features ``(batch, mel bins, 2 * source positions)``, raw audio ``(batch, 4000)``.
    """
    config = module.config
    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    main = str(getattr(module, "main_input_name", "input_ids"))
    names = {main}
    if main in ("input_ids", "pixel_values") and text is not vision:
        names |= {"input_ids", "pixel_values"} & set(_parameters(module))
    if getattr(config, "is_encoder_decoder", False):
        names.add("decoder_input_ids")
    made: list[Wanted] = []
    for name in [main, *sorted(names - {main})]:
        if name == "pixel_values":
            made.append(Wanted(name, _image(vision, batch)))
        elif name.endswith("input_ids"):
            made.append(Wanted(name, *_tokens(text, batch)))
        elif name == "input_features":
            frames = 2 * int(getattr(config, "max_source_positions", 50) or 50)
            bins = int(getattr(config, "num_mel_bins", None) or 80)
            made.append(Wanted(name, (batch, bins, frames)))
        elif name == "input_values":
            made.append(Wanted(name, (batch, 4000)))
    return tuple(made)


def _parameters(module: Any) -> Sequence[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)


def _image(config: Any, batch: int) -> tuple[int, ...]:
    size = getattr(config, "image_size", None) or 224
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    pair = (size, size) if isinstance(size, int) else tuple(size)
    channels = int(getattr(config, "num_channels", None) or 3)
    frames = getattr(config, "num_frames", None)
    middle = (int(frames), channels) if frames else (channels,)
    return (batch, *middle, int(pair[0]), int(pair[-1]))


def _tokens(config: Any, batch: int) -> tuple[tuple[int, ...], int]:
    limits = (getattr(config, key, None) for key in ("max_position_embeddings", "n_positions"))
    length = min([16, *(n for n in limits if isinstance(n, int) and n > 0)])
    return (batch, length), int(getattr(config, "vocab_size", None) or 2)
