"""LoRA adapters as PEFT writes them, merged into the weights that they adapt.

Source: Hu et al., LoRA, arXiv 2106.09685 (W + B A alpha / r); Kalajdzievski, rsLoRA, arXiv 2312.03732
(alpha / sqrt(r)); Liu et al., DoRA, arXiv 2402.09353 (a magnitude for each output over the norm of its row).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import LoadError
from normfold.load import pickled
from normfold.load.folder_config import read_json
from normfold.load.folder_weights import check_pointers, has_weights
from normfold.load.trust import Trust

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_KNOWN_USES = {"use_rslora", "use_dora"}
_OTHER_MATHS = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
    "velora_config",
)
# These begin from a base whose weights were changed at the start of the training.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_HEADS = ("score", "classifier", "classifier.out_proj", "qa_outputs")
_PART = re.compile(
    r"^(?P<path>.+)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.default)?(?:\.(?P<kind>weight|bias))?$"
)


@dataclass
class Adapter:
    """What an adapter folder holds: ``parts`` of LoRA by module path, and ``whole`` tensors by name."""

    folder: Path
    base: Path
    config: dict[str, Any]
    task: str
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)

    @property
    def labels(self) -> int | None:
        """The number of labels of a trained head."""
        for name in _HEADS:
            for key, value in self.whole.items():
                if key.endswith(f"{name}.weight") and value.dim() == 2:
                    return int(value.shape[0])
        return None


def read(folder: Path, trust: Trust) -> Adapter | None:
    """The adapter that lies in a folder; None where there is none.

    Raises:
        LoadError: an adapter that is not LoRA, that needs more than its two matrices, or without its base.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    check_pointers(folder)
    config = read_json(file)
    _refuse(config, file)
    weights = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if weights is None:
        raise LoadError(
            "the folder has an adapter's config without its weights",
            where=str(folder),
            hint=f"`{_FILES[0]}` is expected next to `adapter_config.json`",
        )
    if weights.suffix == ".bin":
        state = pickled.read(weights, trust)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(weights)
        except SafetensorError as error:
            raise LoadError(
                "the adapter's weights could not be read", where=str(weights), found=str(error)
            ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise LoadError("the adapter's weights are not a state dict", where=str(weights))
    found = Adapter(folder, _base(folder, config), config, str(config.get("task_type") or ""))
    for key, value in state.items():
        name = str(key).removeprefix("base_model.model.")
        match = _PART.match(name)
        if match is not None:
            part = match["part"] + (".bias" if match["kind"] == "bias" else "")
            found.parts.setdefault(match["path"], {})[part] = value
        else:
            name = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
            found.whole[name.replace(".base_layer.", ".")] = value
    return found


def left_out(folder: Path) -> list[str]:
    """A note on adapters in subfolders, which are none of the folder's own."""
    names = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        [f"not merged: the adapters in {listed}; give such a folder to merge it"] if names else []
    )


def _refuse(config: dict[str, Any], file: Path) -> None:
    kind = str(config.get("peft_type"))
    hint = "merge it with peft (`PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(folder)`)"
    if kind != "LORA":
        raise LoadError(
            f"the adapter is of the kind `{kind}`, and normfold merges LoRA only",
            where=str(file),
            hint=f"{hint} and give that folder"
            if kind in ("IA3", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA")
            else "only an adapter that can be merged into weights becomes part of a network",
        )
    strange = [name for name in _OTHER_MATHS if config.get(name)]
    strange += [
        str(key)
        for key, value in config.items()
        if str(key).startswith("use_") and value and key not in _KNOWN_USES
    ]
    first = str(config.get("init_lora_weights") or "")
    if first.startswith(_CHANGED_BASE):
        strange.append(f"init_lora_weights={first}")
    if strange:
        raise LoadError(
            "the adapter needs more than W + B A alpha / r",
            where=str(file),
            found=", ".join(f"`{name}`" for name in strange),
            hint=f"{hint} and give that folder",
        )


def _base(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of the base weights: this one, or a local one that the config names."""
    if (folder / "config.json").is_file() and has_weights(folder):
        return folder
    text = str(config.get("base_model_name_or_path") or "")
    if text:
        for path in (Path(text), folder / text):
            if not (path / "config.json").is_file() or path.resolve() == folder.resolve():
                continue
            if (path / "adapter_config.json").is_file():
                raise LoadError(
                    "the base of the adapter is another adapter",
                    where=str(folder / "adapter_config.json"),
                    found=f"`base_model_name_or_path`: `{text}`",
                    hint="merge that one first: with peft (`merge_and_unload`), and save the network",
                )
            return path
    raise LoadError(
        "the folder holds an adapter only, and its base is not on this machine",
        where=str(folder / "adapter_config.json"),
        found=f"`base_model_name_or_path`: `{text}`",
        hint="download the base, and write its local folder as `base_model_name_or_path` in adapter_config.json, "
        "or put config.json and the base weights beside the adapter",
    )


def whole_weights(module: nn.Module, adapter: Adapter) -> set[str]:
    """Names of the module's weights that the adapter brings whole."""
    names = dict(module.named_parameters(remove_duplicate=False))
    found = (_named(module, name, names) for name in adapter.whole)
    return {name for name in found if name is not None}


def merge(module: nn.Module, adapter: Adapter) -> list[str]:
    """Merge an adapter into a network, in float64, each weight cast once to its own dtype.

    Returns:
        Notes that say what was merged.

    Raises:
        LoadError: a tensor of the adapter fits no weight.
    """
    names = dict(module.named_parameters(remove_duplicate=False))
    modules = dict(module.named_modules(remove_duplicate=False))
    lost: list[str] = []
    merged = 0
    with torch.no_grad():
        for name, value in adapter.whole.items():
            target = _named(module, name, names)
            if target is None or names[target].shape != value.shape:
                lost.append(name)
                continue
            owner, _, leaf = target.rpartition(".")
            _replace(modules[owner], leaf, value.to(names[target].dtype))
        for path, parts in adapter.parts.items():
            target = _named(module, path, modules)
            if target is None:
                lost.append(path)
                continue
            _merge_one(modules[target], path, parts, adapter)
            merged += 1
    if lost or (not merged and not adapter.whole):
        raise LoadError(
            f"{len(lost)} of the adapter's tensors fit no weight of `{type(module).__name__}`"
            if lost
            else "the adapter holds no tensors",
            where=str(adapter.folder),
            found=", ".join(f"`{name}`" for name in lost[:4]) or None,
            hint="is it the base that the adapter was trained on? merging it with peft "
            "(`merge_and_unload`) and giving that folder is the other way",
        )
    notes = [f"LoRA adapter merged into {merged} weights"]
    if adapter.whole:
        notes.append(f"{len(adapter.whole)} weights are the adapter's own (trained whole)")
    return notes


def _named(module: nn.Module, name: str, known: dict[str, Any]) -> str | None:
    """The name in this network: the adapter may have been trained on it with or without a head around it."""
    prefix = str(getattr(module, "base_model_prefix", "") or "")
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return None


def _replace(owner: nn.Module, leaf: str, value: Tensor) -> None:
    # A new parameter: another layer that is tied to the old one keeps it, as with an adapter beside it.
    setattr(owner, leaf, nn.Parameter(value.contiguous(), requires_grad=False))


def _merge_one(layer: nn.Module, path: str, parts: dict[str, Tensor], adapter: Adapter) -> None:
    embedding = "lora_embedding_A" in parts
    first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    known = {first, second, "lora_magnitude_vector", "lora_B.bias"}
    if first not in parts or second not in parts or not set(parts) <= known:
        raise _misfit(path, adapter, f"has {', '.join(sorted(parts))}")
    a, b = parts[first].double(), parts[second].double()
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise _misfit(path, adapter, f"is a {type(layer).__name__}, which has no weight")
    # GPT-2's linear layer keeps its weight transposed, too
    transposed = embedding or type(layer).__name__ == "Conv1D"
    magnitude = parts.get("lora_magnitude_vector")
    if embedding != isinstance(layer, nn.Embedding) or (embedding and magnitude is not None):
        raise _misfit(path, adapter, f"is a {type(layer).__name__} with {', '.join(sorted(parts))}")
    if getattr(layer, "groups", 1) != 1 or bool(adapter.config.get("use_dora")) != (
        magnitude is not None
    ):
        raise _misfit(path, adapter, "has groups, or `use_dora` without a magnitude")
    rank = a.shape[0]
    scale = _alpha(path, adapter) / (rank**0.5 if adapter.config.get("use_rslora") else rank)
    if b.dim() < 2 or b.shape[1] != rank or b[0, 0].numel() != 1:
        raise _misfit(path, adapter, f"has matrices {tuple(a.shape)} and {tuple(b.shape)}")
    change = (scale * b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
    old = weight.detach().double()
    old = old.T if transposed else old
    if change.shape != old.shape:
        raise _misfit(path, adapter, f"changes {tuple(change.shape)} of {tuple(old.shape)}")
    new = old + change
    gain = torch.ones(new.shape[0], dtype=torch.float64)
    if magnitude is not None:
        if magnitude.numel() != new.shape[0]:
            raise _misfit(
                path, adapter, f"has {magnitude.numel()} magnitudes for {new.shape[0]} rows"
            )
        gain = magnitude.double().flatten() / new.flatten(1).norm(dim=1)
        new = new * gain.reshape(-1, *[1] * (new.dim() - 1))
    new = new.T if transposed else new
    bias = parts.get("lora_B.bias")
    if bias is not None:
        own = getattr(layer, "bias", None)
        if not isinstance(own, Tensor):
            raise _misfit(path, adapter, "has a bias in `lora_B`, and the layer has none")
        _replace(layer, "bias", (own.double() + scale * gain * bias.double()).to(own.dtype))
    _replace(layer, "weight", new.to(weight.dtype))


def _alpha(path: str, adapter: Adapter) -> float:
    """`alpha_pattern` names a module, or the end of its path; the first that fits counts."""
    patterns = adapter.config.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).replace(r"\.", ".").removesuffix("$")
        whole, plain = plain.startswith("^"), plain.removeprefix("^")
        if not re.fullmatch(r"[\w.\-]+", plain):
            raise LoadError(
                "a regular expression in `alpha_pattern` is not read",
                where=str(adapter.folder / "adapter_config.json"),
                found=f"`{pattern}`",
                hint="write the paths of the modules there, or merge the adapter with peft",
            )
        if path == plain or (not whole and path.endswith(f".{plain}")):
            return _number(value, adapter)
    return _number(adapter.config.get("lora_alpha"), adapter)


def _number(value: Any, adapter: Adapter) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise LoadError(
        "`lora_alpha` is not a number",
        where=str(adapter.folder / "adapter_config.json"),
        found=f"`{value}`",
    )


def _misfit(path: str, adapter: Adapter, why: str) -> LoadError:
    return LoadError(
        f"the adapter of `{path}` cannot be merged",
        where=str(adapter.folder),
        found=f"it {why}",
        hint="merge it with peft (`merge_and_unload`) and give that folder",
    )
