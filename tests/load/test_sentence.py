"""Folders of sentence-transformers: pooling on padded sentences against loops over the tokens that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import normfold
from normfold.errors import LoadError
from normfold.load import load

FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
Saved = tuple[Path, Any]


@pytest.fixture
def bert(tmp_path: Path) -> Saved:
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def _modules(folder: Path, *kinds: str, home: str = "sentence_transformers.models") -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{home}.Transformer"}]
    for index, kind in enumerate(kinds, 1):
        path = f"{index}_{kind}"
        (folder / path).mkdir(exist_ok=True)
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"{home}.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))


def _pooling(folder: Path, *modes: str, **more: Any) -> None:
    flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in FLAGS.items()}
    config = {"word_embedding_dimension": 16, **flags, **more}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def _sentences() -> tuple[Tensor, Tensor]:
    """Four of 7, 3, 5 and 1 tokens; the third is padded at its beginning."""
    ids = torch.randint(3, 61, (4, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1, 3:] = 0
    mask[2, :2] = 0
    mask[3, 1:] = 0
    return ids, mask


def _pooled(mode: str, tokens: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for vectors, kept in zip(tokens, mask, strict=True):
        places = [place for place in range(len(kept)) if kept[place]]
        there = [vectors[place] for place in places]
        total = torch.stack(there).sum(dim=0)
        rows.append(
            {
                "cls": vectors[0],
                "max": torch.stack(there).amax(dim=0),
                "mean": total / len(there),
                "mean_sqrt_len_tokens": total / len(there) ** 0.5,
                "weightedmean": torch.stack([(p + 1) * vectors[p] for p in places]).sum(dim=0)
                / sum(p + 1 for p in places),
                "lasttoken": there[-1],
            }[mode]
        )
    return torch.stack(rows)


@pytest.mark.parametrize(
    "modes", [*((mode,) for mode in FLAGS), ("cls", "mean"), ("max", "lasttoken")]
)
def test_pooling_on_padded_sentences(bert: Saved, modes: tuple[str, ...]) -> None:
    folder, model = bert
    _modules(folder, "Pooling")
    _pooling(folder, *modes)
    loaded = load(folder)
    ids, mask = _sentences()
    out = loaded.module.double()(ids, mask)
    tokens = model.double()(ids, attention_mask=mask).last_hidden_state
    assert list(out) == ["token_embeddings", "sentence_embedding"]
    assert torch.allclose(out["token_embeddings"], tokens, rtol=1e-12, atol=1e-12)
    wanted = torch.cat([_pooled(mode, tokens, mask) for mode in modes], dim=1)
    assert torch.allclose(out["sentence_embedding"], wanted, rtol=1e-10, atol=1e-12)


def test_names_of_newer_versions(bert: Saved) -> None:
    folder, model = bert
    _modules(folder, "Pooling", "Normalize", home="sentence_transformers.base.modules")
    config = {"embedding_dimension": 16, "pooling_mode": "lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    ids, mask = _sentences()
    found = load(folder).module(ids, mask)["sentence_embedding"]
    tokens = model(ids, attention_mask=mask).last_hidden_state
    wanted = torch.nn.functional.normalize(_pooled("lasttoken", tokens, mask), dim=1)
    assert torch.allclose(found, wanted, atol=1e-6)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["mean", "median"]}')
    with pytest.raises(LoadError, match="median"):
        load(folder)


@pytest.mark.parametrize("pickled", [False, True])
def test_dense_and_norms_behind_it(bert: Saved, pickled: bool) -> None:
    folder, model = bert
    _modules(folder, "Pooling", "Dense", "Dropout", "LayerNorm", "Dense", "Normalize")
    _pooling(folder, "mean")
    first = {"linear.weight": torch.randn(12, 16), "linear.bias": torch.randn(12)}
    second = {"linear.weight": torch.randn(5, 12), "residual.weight": torch.randn(5, 12)}
    norm = {"norm.weight": torch.randn(12), "norm.bias": torch.randn(12)}
    tanh, identity = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
    for path, state, config in (
        ("2_Dense", first, {"in_features": 16, "out_features": 12, "activation_function": tanh}),
        ("4_LayerNorm", norm, {"dimension": 12}),
        ("5_Dense", second, {"in_features": 12, "out_features": 5, "bias": False, "use_residual": True,
                             "activation_function": identity}),
    ):  # fmt: skip
        (folder / path / "config.json").write_text(json.dumps(config))
        if pickled:
            torch.save(state, folder / path / "pytorch_model.bin")
        else:
            save_file(state, folder / path / "model.safetensors")
    ids, mask = _sentences()
    loaded = load(folder)
    found = loaded.module(ids, mask)["sentence_embedding"]
    x = _pooled("mean", model(ids, attention_mask=mask).last_hidden_state, mask)
    x = (x @ first["linear.weight"].T + first["linear.bias"]).tanh()
    x = (x - x.mean(1, True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    x = x * norm["norm.weight"] + norm["norm.bias"]
    x = x @ (second["linear.weight"] + second["residual.weight"]).T
    assert torch.allclose(found, x / x.norm(dim=1, keepdim=True), atol=1e-5)
    names = [name for name, _ in loaded.module.named_parameters()]
    assert {"dense.linear.weight", "layernorm.norm.bias", "dense_2.residual.weight"} <= set(names)


def test_inputs_are_what_the_tokenizer_gives(bert: Saved) -> None:
    folder, _ = bert
    _modules(folder, "Pooling")
    _pooling(folder, "mean")
    names = {"input_ids", "attention_mask"}
    assert set(_inputs(folder)) == names
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert set(_inputs(folder)) == {*names, "token_type_ids"}
    config = {"tokenizer_class": "BertTokenizer", "model_input_names": sorted(names)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert set(_inputs(folder)) == names


def _inputs(folder: Path) -> list[str]:
    loaded = load(folder)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [*names[: len(loaded.args)], *loaded.kwargs]


def test_t5_without_its_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=61, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    _modules(tmp_path / "model", "Pooling", "Normalize")
    _pooling(tmp_path / "model", "mean")
    loaded = load(tmp_path / "model")
    assert type(loaded.module.get_submodule("transformer")).__name__ == "T5EncoderModel"
    assert loaded.module(*_sentences())["sentence_embedding"].shape == (4, 16)


@pytest.mark.parametrize(
    "kind", ["CLIPModel", "WeightedLayerPooling", "CNN", "SpladePooling", "my.Own"]
)
def test_other_modules_are_refused_by_name(bert: Saved, kind: str) -> None:
    folder, _ = bert
    _modules(folder, "Pooling", kind)
    _pooling(folder, "mean")
    (folder / f"2_{kind}" / "config.json").write_text("{}")
    with pytest.raises(LoadError, match=kind.rpartition(".")[2]):
        load(folder)


def test_damaged_modules(bert: Saved) -> None:
    folder, _ = bert
    _modules(folder, "Pooling", "Dense")
    _pooling(folder, "mean")
    config = {"in_features": 16, "out_features": 4, "activation_function": "evil.module.Run"}
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(LoadError, match="activation"):
        load(folder)
    path.write_text(json.dumps({**config, "activation_function": None}))
    with pytest.raises(LoadError, match="no weights"):
        load(folder)
    save_file({"linear.weight": torch.zeros(3, 16)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(LoadError, match=r"`linear\.bias`, `linear\.weight`"):
        load(folder)
    (folder / "modules.json").write_text(
        '[{"idx": 0, "path": "../..", "type": "sentence_transformers.models.Transformer"}]'
    )
    with pytest.raises(LoadError, match="outside its own"):
        load(folder)


def test_the_file_takes_padded_sentences(bert: Saved, tmp_path: Path) -> None:
    import onnxruntime

    folder, model = bert
    _modules(folder, "Pooling", "Normalize")
    _pooling(folder, "mean")
    result = normfold.convert(
        str(folder), output=tmp_path / "out", dynamic=("input_ids:1", "attention_mask:1")
    )
    file = next(path for path in result.artifacts if path.suffix == ".onnx")
    session = onnxruntime.InferenceSession(str(file))
    assert [item.name for item in session.get_outputs()] == [
        "token_embeddings",
        "sentence_embedding",
    ]
    ids, mask = _sentences()
    given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    found = torch.from_numpy(session.run(None, given)[1])
    wanted = _pooled("mean", model.double()(ids, attention_mask=mask).last_hidden_state, mask)
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-6)
