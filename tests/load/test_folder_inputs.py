"""What a transformers model is asked with, without a word from the user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from normfold.errors import LoadError
from normfold.load import folder_inputs, load
from normfold.load.types import Wanted
from tests.zoo.folder_configs import FOLDERS, all_folders


def _model(name: str) -> Any:
    folder = all_folders()[name]
    settings = dict(folder.settings)
    if isinstance(backbone := settings.get("backbone_config"), dict):
        settings["backbone_config"] = transformers.AutoConfig.for_model(**backbone)
    with torch.device("meta"):
        config = getattr(transformers, folder.config)(**settings)
        return getattr(transformers, folder.model)(config)


def _asked(model: Any, *args: Any) -> tuple[dict[str, Wanted], tuple[str, ...]]:
    inputs, notes = next(iter(folder_inputs.wanted(model, 2, *args)))
    return {str(item.name): item for item in inputs}, notes


TEXT: dict[str, tuple[int, ...]] = {"input_ids": (2, 16), "attention_mask": (2, 16)}
BOTH = {**TEXT, "decoder_input_ids": (2, 12)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "bert": TEXT,
    "distilbert": TEXT,
    "electra": TEXT,
    "llama": TEXT,
    "gpt2": TEXT,
    "bloom": TEXT,
    "bert-choice": {"input_ids": (2, 2, 16), "attention_mask": (2, 2, 16)},
    "bart": BOTH,
    "t5": BOTH,
    "m2m100": BOTH,
    "t5-encoder": TEXT,
    "t5-classifier": TEXT,
    "clip": {**TEXT, "pixel_values": (2, 3, 32, 32)},
    "siglip": {**TEXT, "pixel_values": (2, 3, 32, 32)},
    "clip-vision": {"pixel_values": (2, 3, 32, 32)},
    "clip-text": TEXT,
    "trocr": {"pixel_values": (2, 3, 32, 32), "decoder_input_ids": (2, 12)},
    "detr": {"pixel_values": (2, 3, 224, 224)},
    "table-transformer": {"pixel_values": (2, 3, 224, 224)},
    "deformable-detr": {"pixel_values": (2, 3, 224, 224)},
    "rt-detr": {"pixel_values": (2, 3, 224, 224)},
    "whisper": {"input_features": (2, 10, 24), "decoder_input_ids": (2, 12)},
    "whisper-classifier": {"input_features": (2, 10, 24)},
    "wav2vec2": {"input_values": (2, 4000)},
    "ast": {"input_values": (2, 40, 24)},
    "videomae": {"pixel_values": (2, 4, 3, 32, 32)},
    "vjepa2": {"pixel_values_videos": (2, 4, 3, 32, 32)},
    "patchtst": {"past_values": (2, 32, 3)},
    "layoutlm": {**TEXT, "bbox": (2, 16, 4)},
    "llava": TEXT,
    "vit-mae": {"pixel_values": (2, 3, 32, 32), "noise": (2, 16)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes(name: str) -> None:
    found, _ = _asked(_model(name))
    assert {key: item.shape for key, item in found.items()} == SHAPES[name]


def test_lengths_are_free_and_masks_are_zero_or_one() -> None:
    for name, model in (
        ("bert", _model("bert")),
        ("bart", _model("bart")),
        ("gptj", _model("gptj")),
    ):
        found, _ = _asked(model)
        assert all(item.free == (1,) for item in found.values()), name
        assert found["attention_mask"].high == 2
        assert found["input_ids"].high == 61
    assert _asked(_model("bert-choice"))[0]["input_ids"].free == (2,)
    assert _asked(_model("wav2vec2"))[0]["input_values"].free == (1,)
    assert _asked(_model("vit"))[0]["pixel_values"].free == ()


def test_types_of_tokens_where_the_tokenizer_gives_them() -> None:
    names = ("input_ids", "token_type_ids", "attention_mask")
    assert set(_asked(_model("bert"), None, names)[0]) == set(names)
    assert "token_type_ids" not in _asked(_model("distilbert"), None, names)[0]  # which has none
    assert _asked(_model("bert"), None, names)[0]["token_type_ids"].high == 2


def test_a_picture_among_the_tokens_is_left_out_with_a_note() -> None:
    _, notes = _asked(_model("llava"))
    assert "only the text path" in notes[0]
    assert "`pixel_values`" in notes[0]


@pytest.mark.parametrize(
    ("model", "text"),
    [(lambda: transformers.TimesFmModelForPrediction(transformers.TimesFmConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8)),
      "`past_values`"),
     (lambda: transformers.SpeechT5ForSpeechToSpeech(transformers.SpeechT5Config(
         hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
         encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=20)), "speaker_embeddings"),
     (lambda: _model("informer"), "`past_time_features`")],
)  # fmt: skip
def test_unknown_inputs_are_asked_for(model: Any, text: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(model())
    assert text in str(caught.value)
    assert "--input" in str(caught.value)


SIZES: list[tuple[dict[str, Any], tuple[int, int] | None]] = [
    ({"size": 96}, (96, 96)),
    ({"size": {"height": 48, "width": 64}}, (48, 64)),
    ({"size": [48, 64]}, (48, 64)),
    ({"size": {"shortest_edge": 80, "longest_edge": 133}}, (80, 80)),
    ({"size": {"longest_edge": 64}}, (64, 64)),
    ({"size": {"max_height": 40, "max_width": 50}}, (40, 50)),
    ({"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": 64}, (64, 64)),
    ({"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": {"height": 64, "width": 72}}, (64, 72)),
    ({"size": {"shortest_edge": 80}, "do_center_crop": False, "crop_size": 64}, (80, 80)),
    ({"size": {"longest_edge": 64}, "do_pad": True, "pad_size": {"height": 72, "width": 72}}, (72, 72)),
    ({"size": 96, "do_resize": False}, None),
    ({"feature_size": 80}, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "wanted"), SIZES)
def test_sizes_of_a_preprocessor(
    tmp_path: Path, config: dict[str, Any], wanted: tuple[int, int] | None
) -> None:
    from normfold.load.folder_inputs import image_size

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    size, notes = image_size(tmp_path)
    assert size == wanted
    edges = config.get("size")
    alone = isinstance(edges, dict) and "shortest_edge" in edges and size == (80, 80)
    assert ("shorter side alone" in " ".join(notes)) == alone
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert image_size(tmp_path) == (wanted, notes)


def test_sizes_of_parts_of_a_config() -> None:
    assert _asked(_model("depth-anything"))[0]["pixel_values"].shape == (2, 3, 64, 64)
    assert _asked(_model("vitpose"))[0]["pixel_values"].shape == (2, 3, 64, 48)
    assert _asked(_model("siglip"))[0]["pixel_values"].shape == (2, 3, 32, 32)


def test_an_assumed_size_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "resnet"
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**FOLDERS["resnet"].settings)
    )
    model.save_pretrained(folder)
    loaded = load(folder)
    assert loaded.args[0].shape == (2, 3, 224, 224)
    assert any("224x224 are assumed" in note and "--input" in note for note in loaded.notes)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 48, "width": 64}}')
    loaded = load(folder)
    assert loaded.args[0].shape == (2, 3, 48, 64)
    assert not any("assumed" in note for note in loaded.notes)


def test_the_config_where_the_network_refuses_the_preprocessor(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    _real("vit").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 40}')
    loaded = load(folder)
    assert loaded.args[0].shape == (2, 3, 32, 32)
    assert any("images of 32x32, as config.json says" in note for note in loaded.notes)


def _real(name: str) -> Any:
    folder = all_folders()[name]
    return getattr(transformers, folder.model)(
        getattr(transformers, folder.config)(**folder.settings)
    )


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "llama"])
def test_no_cache_and_experts_that_a_graph_can_hold(name: str) -> None:
    model = _real(name)
    loaded = load(model)
    module: Any = loaded.module
    assert not module.config.use_cache
    assert model.config.use_cache
    assert any("batched_mm" in note for note in loaded.notes) == (name != "llama")
    given = {"input_ids": loaded.args[0], "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    model.set_experts_implementation("eager")  # the loop over experts
    with torch.no_grad():
        wanted = model.double().eval()(**given).logits
        assert torch.allclose(module.double()(**given).logits, wanted, rtol=1e-9, atol=1e-12)


def test_the_part_of_a_language_model_that_sees(tmp_path: Path) -> None:
    _real("llava").save_pretrained(tmp_path)
    loaded = load(tmp_path, part="model.vision_tower", inputs=["pixel_values:1x3x32x32"])
    assert type(loaded.module).__name__ == "CLIPVisionModel"
    assert loaded.args[0].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["t5", "bart", "trocr", "whisper", "llava"])
def test_no_part_keeps_a_cache(name: str) -> None:
    loaded = load(_real(name))
    module: Any = loaded.module
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    assert not any(getattr(config, "use_cache", False) for config in configs)
    outputs = module(*loaded.args, **loaded.kwargs)
    assert getattr(outputs, "past_key_values", None) is None


@pytest.mark.parametrize("part", [None, "bert"])
def test_masks_are_as_large_as_the_tokens(tmp_path: Path, part: str | None) -> None:
    from normfold.load.capture import capture_loaded

    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**all_folders()["bert"].settings)
    )
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    if part is not None:
        loaded = replace(loaded, module=loaded.module.get_submodule(part))
    graph = capture_loaded(loaded, "dynamic")
    nodes = [node for node in graph.nodes if node.op == "placeholder"][:2]
    ids, mask = (node.meta["val"].shape for node in nodes)
    assert str(ids[0]) == str(mask[0])
    assert not str(ids[0]).isdigit()
    assert str(ids[1]) == str(mask[1])


def test_a_mask_of_another_length_is_let_through() -> None:
    base: Any = transformers.BertModel

    class Prefixed(base):  # type: ignore[misc]  # which has seen more than it is given
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            return super().forward(input_ids, attention_mask=attention_mask[:, -16:])

    module: Any = load(Prefixed(_model("bert").config)).module
    ids = torch.zeros(2, 16, dtype=torch.int64)
    assert module(ids, torch.ones(2, 20, dtype=torch.int64))[0].shape[:2] == (2, 16)
