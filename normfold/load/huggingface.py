"""Hugging Face folders: config.json and safetensors, read by transformers without remote code."""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any

from normfold.errors import EnvironmentMissing, LoadError, last_line
from normfold.load import adapter, folder_inputs, folder_weights, lacking, sentence
from normfold.load.factory import optional, seeded
from normfold.load.folder_config import architecture, base_class, read_config
from normfold.load.limits import limited
from normfold.load.trust import Trust
from normfold.load.types import Found
from normfold.progress import without_bars


def load_folder(folder: Path, trust: Trust, seed: int) -> Found:
    """The network of a folder: the model that `config.json` names, with the folder's weights in their stored
    dtype, its LoRA adapter merged, and the modules of sentence-transformers behind it.

    Raises:
        LoadError: no config or weights, an unknown architecture, remote code, unsafe pickle, another format.
    """
    folder_weights.check_pointers(folder)
    folder_weights.refuse_other_formats(folder)
    _transformers()
    plan = sentence.read(folder, trust)
    if plan is None:
        return _network(folder, trust, seed)
    return sentence.attach(plan, _network(plan.transformer, trust, seed, plan))


def _transformers() -> Any:
    transformers: Any = optional("transformers", "read Hugging Face folders")
    try:
        transformers.PreTrainedModel  # noqa: B018  imported now, with all that it needs
    except Exception as error:  # what a broken neighbour such as torchvision raises
        raise EnvironmentMissing(
            "`transformers` is installed and cannot be imported", found=last_line(error)
        ) from error
    return transformers


def _network(folder: Path, trust: Trust, seed: int, plan: sentence.Plan | None = None) -> Found:
    """The transformers model of a folder, with its adapter merged."""
    lora = adapter.read(folder, trust)
    base = folder
    if lora is not None and not (
        (folder / "config.json").is_file() and folder_weights.has_weights(folder)
    ):
        base = lora.base
        folder_weights.check_pointers(base)
    with limited(base):
        found = _model(base, trust, seed, plan, lora)
    found.image_size, notes = folder_inputs.image_size(base)
    found.notes += notes
    found.input_names = folder_inputs.tokenizer_names(folder) or folder_inputs.tokenizer_names(base)
    found.notes += adapter.left_out(folder)
    if lora is not None:
        found.notes += adapter.merge(found.module, lora)
        if base != folder:
            found.notes.append(f"base weights from `{base}`")
            found.source += f" with the adapter of `{folder}`"
    return found


def _model(
    folder: Path, trust: Trust, seed: int, plan: sentence.Plan | None, lora: adapter.Adapter | None
) -> Found:
    transformers = _transformers()
    config = read_config(folder)
    notes = []
    if "auto_map" in config:
        notes.append(
            "`auto_map` is ignored: transformers has the model itself; no code of the folder runs"
        )
    name = architecture(config, folder)
    # peft, where it is installed, would attach the adapter: weights that we read are left alone
    weights = folder_weights.read_weights(folder, trust, always=lora is not None)
    if weights is not None and not any((folder / n).is_file() for n in folder_weights.SAFETENSORS):
        notes.append("weights are pickled: read without running them")
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,  # torch.load is never used: pickles are read by us
        "trust_remote_code": False,
        "dtype": "auto",
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `lacking` names them
    }
    known = _known_config(transformers, transformers.AutoConfig, config, folder)
    if plan is not None:
        cls = sentence.encoder_class(transformers, known)
    else:
        cls = _class(transformers, name, known, folder)
        if not isinstance(known, cls.config_class):  # a tower, in the folder of the whole
            known = _known_config(transformers, cls.config_class, config, folder)
        cls = _class_of_task(transformers, cls, known, lora, notes)
    try:
        with without_bars(), seeded(seed):
            if weights is not None:
                options["state_dict"] = weights
            where = str(folder) if weights is None else None
            module, info = cls.from_pretrained(where, config=known, **options)
            if _lacks_pooler(cls, info):
                notes.append("the pooler is not in the folder: the network is made without it")
                options["add_pooling_layer"] = False
                module, info = cls.from_pretrained(where, config=known, **options)
    except Exception as error:
        raise LoadError(
            f"transformers could not load the folder as `{cls.__name__}`",
            where=str(folder),
            found=last_line(error),
        ) from error
    given = adapter.whole_weights(module, lora) if lora is not None else set[str]()
    lacks, more = lacking.compare(module, info, folder, given, "auto_map" in config)
    source = f"`{type(module).__name__}` from the folder `{folder}`"
    return Found(module, source, notes + more, lacking=lacks)


def _lacks_pooler(cls: Any, info: dict[str, Any]) -> bool:
    """Whether the pooler is to be left out: transformers takes it as an argument of its own."""
    optional = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    return optional and any("pooler" in name.split(".") for name in info["missing_keys"])


def _known_config(transformers: Any, cls: Any, config: dict[str, Any], folder: Path) -> Any:
    """The config as an object of transformers; None where the file names no `model_type`."""
    kind = config.get("model_type")
    if cls is transformers.AutoConfig:
        if kind is None:
            return None
        if kind not in transformers.CONFIG_MAPPING:
            close = difflib.get_close_matches(str(kind), transformers.CONFIG_MAPPING.keys(), n=2)
            raise LoadError(
                f"transformers {transformers.__version__} has no model of the type `{kind}`",
                where=str(folder / "config.json"),
                hint=_meant(close) or "the model may need a newer transformers",
            )
    own: dict[str, Any] = {}
    if config.get("use_pretrained_backbone"):  # its weights are in the folder: no download
        own["use_pretrained_backbone"] = False
    try:
        with without_bars():
            return cls.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **own
            )
    except Exception as error:
        raise LoadError(
            f"transformers {transformers.__version__} could not read the config",
            where=str(folder / "config.json"),
            found=last_line(error),
        ) from error


def _meant(close: list[str]) -> str | None:
    return f"did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else None


def _class(transformers: Any, name: str, known: Any, folder: Path) -> Any:
    """The class that `architectures` names, also an encoder that transformers does not list at its top."""
    base = base_class(transformers, known) if known is not None else None
    if not name:
        if base is None:
            raise LoadError(
                f"transformers has no model without a head for `{known.model_type}`",
                where=str(folder / "config.json"),
                hint='name the class in `config.json`, as in `"architectures": ["BertForMaskedLM"]`',
            )
        return base
    cls = getattr(transformers, name, None)
    if cls is None and base is not None:
        cls = getattr(importlib.import_module(base.__module__), name, None)
    where = str(folder / "config.json")
    if cls is None:
        close = difflib.get_close_matches(name, dir(transformers), n=2, cutoff=0.75)
        raise LoadError(
            f"transformers {transformers.__version__} has no `{name}`",
            where=where,
            hint=_meant(close) or "the model may need a newer transformers",
        )
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise LoadError(f"`{name}` is not a model class", where=where)
    return cls


_MAPPINGS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def _class_of_task(
    transformers: Any, cls: Any, known: Any, lora: adapter.Adapter | None, notes: list[str]
) -> Any:
    """The class that an adapter was trained on, where the config names another: its head is the adapter's."""
    mapping_name = _MAPPINGS.get(lora.task) if lora is not None else None
    if lora is None or mapping_name is None:
        return cls
    mapping = getattr(transformers, mapping_name)._model_mapping
    trained = mapping.get(type(known), None)
    if trained is None or isinstance(trained, tuple | list) or trained is cls:
        return cls
    notes.append(
        f"`{trained.__name__}` instead of `{cls.__name__}`: the adapter was trained for it"
    )
    if lora.labels:
        known.num_labels = lora.labels
    return trained
