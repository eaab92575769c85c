"""Folders that hold something else, or not all of it: what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from normfold.errors import LoadError
from normfold.load import load

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TINY))
    model.save_pretrained(folder, max_shard_size="5KB")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def _error(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder)
    return str(caught.value)


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps(config))


def _no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model-00001-of-00009.safetensors",
        "pytorch_model.bin",
        "adapter_model.safetensors",
    ],
)
def test_pointers_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    text = _error(folder)
    assert f"`{name}` is a Git LFS pointer of {len(POINTER)} bytes" in text
    assert "git lfs pull" in text
    assert "weights_only" not in text


def test_a_pointer_in_the_folder_of_a_module(folder: Path) -> None:
    home = "sentence_transformers.models"
    listed = [{"idx": i, "path": p, "type": f"{home}.{k}"}
              for i, (p, k) in enumerate([("", "Transformer"), ("1_Dense", "Dense")])]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "model.safetensors").write_text(POINTER)
    assert "Git LFS pointer" in _error(folder)


def test_shards_that_are_lost_are_listed(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    for file in shards[1:3]:
        file.unlink()
    text = _error(folder)
    assert f"2 of {len(shards)} files of weights are missing" in text
    assert shards[1].name in text
    assert shards[2].name in text
    assert shards[0].name not in text


@pytest.mark.parametrize(
    ("scheme", "said"),
    [({"quant_method": "gptq", "bits": 4}, "`gptq`, 4 bits"),
     ({"quant_method": "awq", "bits": 4, "group_size": 128}, "`awq`"),
     ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "`fp8`"),
     ({"quant_method": "mxfp4"}, "`mxfp4`"), ({"load_in_4bit": True}, "`bitsandbytes`"),
     ({"quant_method": "compressed-tensors"}, "`compressed-tensors`")],
)  # fmt: skip
def test_quantised_checkpoints(folder: Path, scheme: dict[str, Any], said: str) -> None:
    _change(folder, quantization_config=scheme)
    text = _error(folder)
    assert said in text
    assert "float checkpoint" in text
    config = json.loads((folder / "config.json").read_text())
    scheme = config.pop("quantization_config")
    (folder / "config.json").write_text(
        json.dumps({**config, "text_config": {"quantization_config": scheme}})
    )
    assert said in _error(folder)


OTHERS: dict[str, tuple[list[str], Callable[[Path], None] | None, str]] = {
    "tensorflow": (["tf_model.h5"], None, "weights of TensorFlow only"),
    "flax": (["flax_model.msgpack"], None, "weights of Flax only"),
    "gguf": (["model.Q4_K_M.gguf"], None, "GGUF"),
    "gguf-alone": (["a.gguf"], lambda f: (f / "config.json").unlink(), "GGUF"),
    "onnx": (["model.onnx"], None, "ONNX files only"),
    "onnx-alone": (["model.onnx"], lambda f: (f / "config.json").unlink(), "ONNX files only"),
    "onnx-below": (["onnx/model.onnx"], None, "`onnx/model.onnx`"),
    "config": ([], None, "no weights"),
    "training": (["training_args.bin"], None, "no weights"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_named(folder: Path, name: str) -> None:
    files, change, said = OTHERS[name]
    _no_weights(folder)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"\0" * 200)
    if change is not None:
        change(folder)
    assert said in _error(folder)


def test_a_pipeline_of_diffusers_names_its_parts(folder: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "text_encoder")
    (pipeline / "unet").mkdir()
    (pipeline / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
             "unet": ["diffusers", "UNet2DConditionModel"], "x": ["transformers", "../../x"]}  # fmt: skip
    (pipeline / "model_index.json").write_text(json.dumps(index))
    text = _error(pipeline)
    assert "(`text_encoder`)" in text
    assert load(pipeline / "text_encoder").source.startswith("`BertForMaskedLM`")
    assert "`UNet2DConditionModel` is a network of diffusers" in _error(pipeline / "unet")


def test_a_folder_of_timm_names_the_command(folder: Path) -> None:
    (folder / "config.json").write_text('{"architecture": "resnet18", "num_classes": 10}')
    text = _error(folder)
    assert f"normfold convert {folder / 'model.safetensors'} --model timm:resnet18" in text


def test_weights_that_fit_nothing(folder: Path) -> None:
    _no_weights(folder)
    torch.save({"a.weight": torch.ones(3)}, folder / "pytorch_model.bin")
    text = _error(folder)
    assert "weights of `BertForMaskedLM` are not in the folder" in text
    assert "`a.weight`" in text


def test_weights_that_are_not_used_are_named(folder: Path) -> None:
    _change(folder, architectures=["BertModel"])
    loaded = load(folder)
    assert any("weights of the folder are not used" in n and "`cls." in n for n in loaded.notes)
    assert any("the pooler is not in the folder" in note for note in loaded.notes)
    assert not any(name.startswith("pooler.") for name in loaded.module.state_dict())


LACKING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "layer": ({"num_hidden_layers": 2}, ("16 missing", "nothing of `bert.encoder.layer.1`")),
    "head": (
        {"architectures": ["BertForTokenClassification"]},
        (
            "2 missing: `classifier.bias`",
            "not used are `cls.",
            "is `architectures`",
            "`--module bert` takes that",
        ),
    ),
    "shape": (
        {"intermediate_size": 24},
        ("3 of another shape", "intermediate.dense.weight` is 16x16 in the file and 24x16 by the"),
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_weights_that_the_network_needs_are_never_random(folder: Path, name: str) -> None:
    change, said = LACKING[name]
    _change(folder, **change)
    text = _error(folder)
    assert all(part in text for part in said), text


def _without(folder: Path, lost: str) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(folder)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(lost)}
    model.save_pretrained(folder / "again", state_dict=state)
    _no_weights(folder)
    shutil.copy(folder / "again" / "model.safetensors", folder)


def test_weights_that_no_output_depends_on_may_lack(folder: Path) -> None:
    _without(folder, "cls.predictions.transform")
    assert "`--module bert` takes that" in _error(folder)
    notes = load(folder, part="bert").notes
    assert any("not in the folder, and zero: `cls.predictions.transform" in note for note in notes)


def test_a_single_tensor_that_lacks_is_named(folder: Path) -> None:
    _without(folder, "bert.encoder.layer.0.output.LayerNorm.bias")
    text = _error(folder)
    assert "1 missing: `bert.encoder.layer.0.output.LayerNorm.bias`" in text
    assert "not complete" in text
    with pytest.raises(LoadError, match="not in the folder"):
        load(folder, part="bert")


def test_a_config_with_a_value_of_another_type(folder: Path) -> None:
    _change(folder, hidden_size="16")
    assert "Validation error for field 'hidden_size': " in _error(folder)


def test_types_and_models_that_transformers_lacks(folder: Path) -> None:
    _change(folder, model_type="bertt")
    assert "did you mean `bert`" in _error(folder)
    _change(folder, model_type="something-of-2031", architectures=["SomethingModel"])
    assert "newer transformers" in _error(folder)


@pytest.mark.parametrize(
    "name", ["WhisperEncoder", "T5EncoderModel", "BartEncoder", "CLIPTextModel"]
)
def test_a_part_of_a_model_alone(name: str, tmp_path: Path) -> None:
    from transformers.models.bart.modeling_bart import BartEncoder
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from tests.zoo.folder_configs import all_folders

    kinds = {"WhisperEncoder": ("whisper", WhisperEncoder), "BartEncoder": ("bart", BartEncoder),
             "T5EncoderModel": ("t5", transformers.T5EncoderModel),
             "CLIPTextModel": ("clip-text", transformers.CLIPTextModel)}  # fmt: skip
    row, cls = kinds[name]
    config = getattr(transformers, all_folders()[row].config)(**all_folders()[row].settings)
    model: Any = cls(config)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.module) is cls
    assert "decoder_input_ids" not in loaded.kwargs
    assert all(torch.equal(value, dict(loaded.module.named_parameters())[key])
               for key, value in model.named_parameters())  # fmt: skip
