"""Folders of sentence-transformers: the modules that `modules.json` lists, behind the transformer.

The network takes ``input_ids`` and ``attention_mask``, both (batch, length), and where the tokenizer gives them
``token_type_ids``; it returns ``token_embeddings`` (batch, length, features) and ``sentence_embedding`` (batch,
features), as sentence-transformers' own exports do. Padded tokens count for nothing in any way of pooling.

Source: Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084; Muennighoff, SGPT, arXiv 2202.08904 (weighted mean
and last token).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import LoadError
from normfold.load import pickled
from normfold.load.folder_config import base_class, read_any_json, read_json
from normfold.load.folder_weights import check_pointers
from normfold.load.trust import Trust
from normfold.load.types import Found

_FORMS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU)
}
_LOWEST = -6e4  # less than any feature, and a number of half precision, too
# What sentence-transformers takes of an encoder-decoder model.
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}


@dataclass
class Plan:
    """Where the transformer lies, and the modules behind it by name."""

    transformer: Path
    modules: dict[str, nn.Module]
    notes: list[str] = field(default_factory=list)


def read(folder: Path, trust: Trust) -> Plan | None:
    """The modules that `modules.json` names after the transformer; None where there are none.

    Raises:
        LoadError: a module of another kind, or whose config or weights do not fit.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return None
    listed = read_any_json(file)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise LoadError("`modules.json` is not a list of modules", where=str(file))
    listed = sorted(listed, key=lambda item: int(item.get("idx") or 0))
    kinds = [_kind(item) for item in listed]
    if kinds[:1] != ["Transformer"]:
        raise _unknown(kinds[0] if kinds else "nothing", file)
    plan = Plan(_inside(folder, listed[0], file), {})
    task = _settings(plan.transformer, folder).get("transformer_task")
    if len(kinds) == 1:
        return None
    if task not in (None, "feature-extraction"):
        raise _unknown(f"Transformer for {task}", file)
    for item, kind in zip(listed[1:], kinds[1:], strict=True):
        part = _inside(folder, item, file)
        if part.is_dir():
            check_pointers(part)
        if kind == "Dropout":
            continue  # nothing in eval mode
        module = _module(kind, part, trust, file)
        name = kind.lower()
        count = sum(other.partition("_")[0] == name for other in plan.modules)
        plan.modules[f"{name}_{count + 1}" if count else name] = module
    named = _json(folder / "config_sentence_transformers.json").get("prompts")
    without = any(isinstance(m, Pooling) and not m.include_prompt for m in plan.modules.values())
    if without and isinstance(named, dict) and any(named.values()):
        plan.notes.append(
            "`include_prompt` is false in the folder: here the tokens of a prompt are pooled, too"
        )
    plan.notes.append(f"modules.json: {', '.join(kinds[1:])} are part of the network")
    return plan


def attach(plan: Plan, found: Found) -> Found:
    """The transformer that was found, with the modules behind it."""
    takes = set(inspect.signature(found.module.forward).parameters)
    names = [name for name in ("token_type_ids",) if name in found.input_names and name in takes]
    found.input_names = tuple(names)
    found.module = SentenceEmbedding(found.module, plan.modules, bool(names)).eval()
    found.source = found.source.replace(" from the folder", " with pooling from the folder", 1)
    found.notes += plan.notes
    return found


def encoder_class(transformers: Any, known: Any) -> Any:
    """The model without a head, of encoder-decoder models the encoder alone.

    Raises:
        LoadError: there is none, or it is not known how sentence-transformers would call it.
    """
    kind = str(getattr(known, "model_type", ""))
    name = _ENCODERS.get(kind)
    cls = getattr(transformers, name) if name else base_class(transformers, known)
    if cls is None or (name is None and getattr(known, "is_encoder_decoder", False)):
        raise LoadError(f"sentence embeddings of the model type `{kind}` are not known")
    return cls


class SentenceEmbedding(nn.Module):
    """A transformer and the modules of sentence-transformers behind it."""

    main_input_name = "input_ids"

    def __init__(self, transformer: nn.Module, modules: dict[str, nn.Module], types: bool) -> None:
        super().__init__()
        self.config: Any = transformer.config
        self.transformer = transformer
        self.stages = tuple(modules)
        for name, module in modules.items():
            self.add_module(name, module)
        self.types = types

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Both embeddings of a batch of padded sentences."""
        more = {"token_type_ids": token_type_ids} if self.types else {}
        out = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **more)
        features: dict[str, Tensor] = {
            "token_embeddings": out[0],
            "attention_mask": attention_mask,
        }
        for name in self.stages:
            features = self.get_submodule(name)(features)
        wanted = ("token_embeddings", "sentence_embedding")
        return {name: features[name] for name in wanted if name in features}


class Pooling(nn.Module):
    """One vector for a sentence from the vectors of its tokens, in one way or in several behind each other."""

    def __init__(self, modes: tuple[str, ...], include_prompt: bool = True) -> None:
        super().__init__()
        self.modes = modes
        self.include_prompt = include_prompt

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x, mask = features["token_embeddings"], features["attention_mask"]
        pooled = [self._pool(mode, x, mask) for mode in self.modes]
        return {**features, "sentence_embedding": torch.cat(pooled, dim=1)}

    def _pool(self, mode: str, x: Tensor, mask: Tensor) -> Tensor:
        if mode == "cls":
            return x[:, 0]
        if mode == "max":
            return x.masked_fill(mask.unsqueeze(-1) == 0, _LOWEST).amax(dim=1)
        positions = torch.arange(x.shape[1], device=x.device)
        if mode == "lasttoken":
            last = (positions * (mask != 0)).amax(dim=1)
            picked = x.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)
            return picked * (mask != 0).any(dim=1, keepdim=True).to(x.dtype)
        weights = mask.to(x.dtype).unsqueeze(-1)
        if mode == "weightedmean":
            weights = weights * (positions + 1).to(x.dtype).unsqueeze(-1)
        total = weights.sum(dim=1).clamp(min=1e-9)
        return (x * weights).sum(dim=1) / (
            total.sqrt() if mode == "mean_sqrt_len_tokens" else total
        )


class Stage(nn.Module):
    """A module that reads one feature and writes another: a linear layer, a LayerNorm, a normalisation."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.source = str(config.get("module_input_name") or "sentence_embedding")
        self.target = str(config.get("module_output_name") or self.source)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, self.target: self.compute(features[self.source])}

    def compute(self, x: Tensor) -> Tensor:
        """The new feature from the old one."""
        raise NotImplementedError


class Normalize(Stage):
    """Divide by the Euclidean norm over the features."""

    def compute(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, p=2.0, dim=-1)


class Dense(Stage):
    """A linear layer with an activation, and a way around it where the config says so."""

    def __init__(self, config: dict[str, Any], activation: nn.Module) -> None:
        super().__init__(config)
        width, height = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(width, height, bias=bool(config.get("bias", True)))
        self.activation = activation
        self.around = bool(config.get("use_residual"))
        if self.around and width != height:
            self.residual = nn.Linear(width, height, bias=False)

    def compute(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.linear(x := x.to(self.linear.weight.dtype)))
        if self.around:
            y = y + (self.residual(x) if hasattr(self, "residual") else x)
        return y


class LayerNorm(Stage):
    """A LayerNorm over the features."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def compute(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.to(self.norm.weight.dtype))
        return y


def _module(kind: str, part: Path, trust: Trust, file: Path) -> nn.Module:
    config = _json(part / "config.json")
    module: nn.Module
    if kind == "Normalize":
        return Normalize(config)
    if kind == "Pooling":
        return Pooling(_modes(config, part), bool(config.get("include_prompt", True)))
    try:
        if kind == "Dense":
            module = Dense(config, _activation(config, part))
        elif kind == "LayerNorm":
            module = LayerNorm(config)
        else:
            raise _unknown(kind, file)
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"the config of `{kind}` lacks sizes", where=str(part / "config.json"), found=str(error)
        ) from None
    state = _state(part, trust)
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(state)) + sorted(
        name for name in set(own) & set(state) if own[name].shape != state[name].shape
    )
    if wrong:
        raise LoadError(
            f"the weights of `{kind}` do not fit its config",
            where=str(part),
            found=", ".join(f"`{name}`" for name in wrong),
        )
    module.load_state_dict(state, assign=True)
    return module


def _modes(config: dict[str, Any], part: Path) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes:
        found = tuple([modes] if isinstance(modes, str) else modes)
    else:
        given = {"pooling_mode_mean_tokens": True, **config}
        found = tuple(mode for name, mode in _FORMS.items() if given.get(name))
    unknown = [str(mode) for mode in found if mode not in _FORMS.values()]
    unknown += [str(key) for key in config if key.startswith("pooling_mode_") and key not in _FORMS]
    if unknown or not found:
        raise LoadError(
            "the way of pooling is not known",
            where=str(part / "config.json"),
            found=", ".join(f"`{name}`" for name in unknown) or "none is switched on",
            hint=f"known are {', '.join(_FORMS.values())}",
        )
    return found


def _activation(config: dict[str, Any], part: Path) -> nn.Module:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    last = "Identity" if name is None else str(name).rpartition(".")[2]
    if (name is not None and not str(name).startswith("torch.nn.")) or last not in _ACTIVATIONS:
        raise LoadError(
            f"the activation `{name}` is not known",
            where=str(part / "config.json"),
            hint=f"known are those of torch.nn: {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[last]()


def _state(part: Path, trust: Trust) -> dict[str, Tensor]:
    if (part / "model.safetensors").is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(part / "model.safetensors")
        except SafetensorError as error:
            where = str(part / "model.safetensors")
            raise LoadError(
                "the weights could not be read", where=where, found=str(error)
            ) from None
    if (part / "pytorch_model.bin").is_file():
        content = pickled.read(part / "pytorch_model.bin", trust)
        if isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values()):
            return {str(key): value for key, value in content.items()}
        raise LoadError("the weights are not a state dict", where=str(part / "pytorch_model.bin"))
    raise LoadError(
        "a module of sentence-transformers has no weights",
        where=str(part),
        hint="`model.safetensors` or `pytorch_model.bin` is expected there",
    )


def _kind(item: dict[str, Any]) -> str:
    kind = str(item.get("type") or "")
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _inside(folder: Path, item: dict[str, Any], file: Path) -> Path:
    path = Path(str(item.get("path") or ""))
    if path.is_absolute() or ".." in path.parts:
        raise LoadError(
            "`modules.json` names a folder outside its own", where=str(file), found=f"`{path}`"
        )
    return folder / path


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _settings(part: Path, folder: Path) -> dict[str, Any]:
    for owner in (part, folder):
        found = _json(owner / "sentence_bert_config.json")
        if found:
            return found
    return {}


def _unknown(kind: str, file: Path) -> LoadError:
    return LoadError(
        f"`{kind}` of sentence-transformers cannot be built",
        where=str(file),
        hint="normfold builds Transformer, then Pooling, Dense, LayerNorm and Normalize; build others in Python "
        "and give `--model pkg.mod:factory`",
    )
