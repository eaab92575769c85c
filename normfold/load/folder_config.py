"""`config.json` of a Hugging Face folder: what it names, and what it may not bring in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normfold.errors import LoadError, last_line


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a transformers model, checked.

    Raises:
        LoadError: it is missing, damaged, of another library, quantised, or leads to code or files elsewhere.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise no_config(folder)
    config = read_json(file)
    remote = sorted(_remote_code(config))
    if remote:
        raise LoadError(
            "the model needs code that comes with the folder or from a hub; it is not run",
            where=str(file),
            found=", ".join(remote),
            hint="install that code as a package, build the model in Python and give "
            "`pkg.mod:factory`, or use the version of the model that transformers has",
        )
    _refuse_quantised(config, file)
    return config


def no_config(folder: Path) -> LoadError:
    """The error for a folder that is not one of transformers."""
    return LoadError(
        "the folder has no `config.json`",
        where=str(folder),
        hint="a folder must be a Hugging Face model (config.json and *.safetensors); "
        "otherwise give the checkpoint file itself, or `pkg.mod:factory`",
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file; LoadError where it is none."""
    content = read_any_json(file)
    if not isinstance(content, dict):
        raise LoadError(f"`{file.name}` is not valid", where=str(file), found="not a JSON object")
    return content


def read_any_json(file: Path) -> Any:
    """Any JSON value in a file; LoadError where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            f"`{file.name}` is not valid", where=str(file), found=last_line(error)
        ) from None


def architecture(config: dict[str, Any], folder: Path) -> str:
    """The class that `architectures` names; empty where `model_type` alone is known."""
    names = config.get("architectures") or []
    if names or "model_type" in config:
        return str(names[0]) if names else ""
    where = str(folder / "config.json")
    if "_class_name" in config:
        raise LoadError(
            f"`{config['_class_name']}` is a network of diffusers, which normfold does not read",
            where=where,
            hint="build it in Python and give `--model pkg.mod:factory` with its weights file",
        )
    if "architecture" in config:
        raise LoadError(
            "the folder is of timm, not of transformers",
            where=where,
            hint=f"`normfold convert {folder / 'model.safetensors'} --model timm:{config['architecture']}`",
        )
    raise LoadError(
        "`config.json` names neither `architectures` nor `model_type`",
        where=where,
        hint="is this the folder of a transformers model? a timm hub folder loads with "
        "`--model timm:NAME` and its weights file",
    )


def is_native(config: dict[str, Any]) -> bool:
    """Whether transformers itself has the class and the config, so that `auto_map` is not needed."""
    import transformers

    names = config.get("architectures") or []
    known = config.get("model_type") in transformers.CONFIG_MAPPING
    return bool(names) and known and hasattr(transformers, str(names[0]))


def base_class(transformers: Any, known: Any) -> Any:
    """The model without a head that belongs to a config of transformers; None where there is none."""
    found = transformers.AutoModel._model_mapping.get(type(known), None)
    return found[0] if isinstance(found, tuple | list) else found


def _remote_code(config: Any, top: bool = True) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("attribute_map", "transformers_weights"):
                # one name for another, and files of another folder: `_leads_away` would look in vain
                yield f"`{key}`: {value}"
            elif key == "auto_map":
                if not top or not is_native(config):
                    yield f"`auto_map`: {', '.join(map(str, value))}"
            elif _leads_away(key, str(value or "")):
                yield f"`{key}`: {value}"
            else:
                yield from _remote_code(value, False)
    elif isinstance(config, list):
        for value in config:
            yield from _remote_code(value, False)


def _leads_away(key: str, value: str) -> bool:
    """transformers takes attention kernels from a hub, and timm models and weights from anywhere."""
    if key.endswith("_implementation"):
        return "/" in value or value.startswith("flash")  # others are in transformers and torch
    if key in ("architecture", "backbone"):
        return ":" in value
    return key == "checkpoint_path" and bool(value)


def _refuse_quantised(config: dict[str, Any], file: Path) -> None:
    for owner in (config, *(part for part in config.values() if isinstance(part, dict))):
        scheme = owner.get("quantization_config")
        if not scheme:
            continue
        scheme = scheme if isinstance(scheme, dict) else {}
        method = str(scheme.get("quant_method") or "")
        if not method:
            method = "bitsandbytes" if any(key.startswith("load_in_") for key in scheme) else "?"
        bits = scheme.get("bits") or scheme.get("weight_bits") or scheme.get("w_bit")
        what = f"`{method}`" + (f", {bits} bits" if bits else "")
        raise LoadError(
            f"the checkpoint is quantised ({what}), and normfold needs its float weights",
            where=str(file),
            found="`quantization_config`",
            hint="give the float checkpoint that it was made from; normfold quantises itself (`--quantize`)",
        )
