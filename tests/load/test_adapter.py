"""LoRA adapters against the formula in float64, on the network that they are merged into."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from normfold.errors import LoadError
from normfold.load import load

RANK, ALPHA = 4, 6
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
BERT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
Saved = tuple[Path, Any]


@pytest.fixture
def bert(tmp_path: Path) -> Saved:
    return _saved(tmp_path, transformers.BertModel(transformers.BertConfig(**BERT)))


def _saved(path: Path, model: Any) -> Saved:
    folder = path / "base"
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return folder, model


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _write(folder: Path, state: dict[str, Tensor], pickled: bool = False, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    state = {f"base_model.model.{key}": value.contiguous() for key, value in state.items()}
    if pickled:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))


def _pair(path: str, rows: int, columns: int, rank: int = RANK) -> dict[str, Tensor]:
    return {
        f"{path}.lora_A.weight": _draw(rank, columns),
        f"{path}.lora_B.weight": _draw(rows, rank),
    }


def _error(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder)
    return str(caught.value)


QUERY = "encoder.layer.1.attention.self.query"


@pytest.mark.parametrize("pickled", [False, True])
def test_merged_beside_the_base(bert: Saved, pickled: bool) -> None:
    folder, model = bert
    state = _pair(QUERY, 16, 16) | _pair("encoder.layer.0.output.dense", 16, 24)
    _write(folder, state, pickled)
    loaded = load(folder)
    assert "LoRA adapter merged into 2 weights" in loaded.notes
    found = dict(loaded.module.named_parameters())
    for name, value in model.named_parameters():
        path = name.removesuffix(".weight")
        wanted = value.double()
        if f"{path}.lora_A.weight" in state:
            b, a = state[f"{path}.lora_B.weight"], state[f"{path}.lora_A.weight"]
            wanted = wanted + ALPHA / RANK * b.double() @ a.double()
        assert torch.equal(found[name], wanted.float()), name


def _rs(w: Tensor, change: Tensor, _m: Tensor) -> Tensor:
    return w + change * (ALPHA / math.sqrt(RANK))


def _pattern(w: Tensor, change: Tensor, _m: Tensor) -> Tensor:
    return w + change * 20 / RANK


def _dora(w: Tensor, change: Tensor, m: Tensor) -> Tensor:
    new = w + change * ALPHA / RANK
    norm: Tensor = torch.linalg.vector_norm(new, dim=1, keepdim=True)
    return m[:, None] * new / norm


@pytest.mark.parametrize(
    ("config", "formula"),
    [({"use_rslora": True}, _rs), ({"alpha_pattern": {"self.query": 20}}, _pattern),
     ({"alpha_pattern": {"^" + QUERY.replace(".", r"\.") + "$": 20, "query": 3}}, _pattern),
     ({"alpha_pattern": {"layer.0.attention.self.query": 99, "query": 20}}, _pattern),
     ({"use_dora": True}, _dora)],
)  # fmt: skip
def test_scales_and_magnitudes(
    bert: Saved, config: dict[str, Any], formula: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    folder, model = bert
    state = _pair(QUERY, 16, 16)
    magnitude = _draw(16).abs()
    if config.get("use_dora"):
        state[f"{QUERY}.lora_magnitude_vector.weight"] = magnitude
    _write(folder, state, **config)
    weight = model.get_submodule(QUERY).weight.double()
    change = state[f"{QUERY}.lora_B.weight"].double() @ state[f"{QUERY}.lora_A.weight"].double()
    wanted = formula(weight, change, magnitude.double()).float()
    found = load(folder).module.get_submodule(QUERY).weight
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]


def test_a_rank_of_its_own(bert: Saved) -> None:
    folder, model = bert
    state = _pair(QUERY, 16, 16, rank=2)
    _write(folder, state, rank_pattern={"query": 2})
    change = state[f"{QUERY}.lora_B.weight"].double() @ state[f"{QUERY}.lora_A.weight"].double()
    wanted = (model.get_submodule(QUERY).weight.double() + ALPHA / 2 * change).float()
    assert torch.equal(load(folder).module.get_submodule(QUERY).weight, wanted)  # type: ignore[arg-type]


def test_transposed_layers_and_embeddings_of_gpt2(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=40)
    folder, model = _saved(tmp_path, transformers.GPT2LMHeadModel(config))
    path = "transformer.h.0.attn.c_attn"
    state = _pair(path, 48, 16)
    state["transformer.wte.lora_embedding_A"] = _draw(RANK, 61)
    state["transformer.wte.lora_embedding_B"] = _draw(16, RANK)
    _write(folder, state, fan_in_fan_out=True)
    module: Any = load(folder).module
    scale = ALPHA / RANK
    change = state[f"{path}.lora_B.weight"].double() @ state[f"{path}.lora_A.weight"].double()
    wanted = model.transformer.h[0].attn.c_attn.weight.double() + scale * change.T
    assert torch.equal(module.transformer.h[0].attn.c_attn.weight, wanted.float())
    change = (
        state["transformer.wte.lora_embedding_B"].double()
        @ state["transformer.wte.lora_embedding_A"].double()
    )
    wanted = model.transformer.wte.weight.double() + scale * change.T
    assert torch.equal(module.transformer.wte.weight, wanted.float())
    assert torch.equal(module.lm_head.weight, model.lm_head.weight)  # tied before, not adapted


def test_convolutions_and_biases(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    folder, model = _saved(tmp_path, transformers.ResNetForImageClassification(config))
    path, name = "resnet.encoder.stages.1.layers.0.layer.0.convolution", "classifier.1"
    state = {
        f"{path}.lora_A.weight": _draw(RANK, 8, 3, 3),
        f"{path}.lora_B.weight": _draw(8, RANK, 1, 1),
    }
    state |= _pair(name, 2, 8) | {f"{name}.base_layer.bias": _draw(2)}
    state[f"{name}.lora_B.bias"] = _draw(2)
    _write(folder, state, bias="lora_only", lora_bias=True)
    module: Any = load(folder).module
    first = nn.Conv2d(8, RANK, 3, padding=1, bias=False).double()
    second = nn.Conv2d(RANK, 8, 1, bias=False).double()
    first.weight.data, second.weight.data = (
        state[f"{path}.lora_A.weight"].double(), state[f"{path}.lora_B.weight"].double(),
    )  # fmt: skip
    x = _draw(2, 8, 6, 6).double()
    old, new = (owner.get_submodule(path).weight.double() for owner in (model, module))
    wanted = nn.functional.conv2d(x, old, padding=1) + ALPHA / RANK * second(first(x))
    assert torch.allclose(nn.functional.conv2d(x, new, padding=1), wanted, rtol=1e-5, atol=1e-5)
    bias = state[f"{name}.base_layer.bias"] + ALPHA / RANK * state[f"{name}.lora_B.bias"]
    assert torch.allclose(module.classifier[1].bias, bias)


def test_the_adapter_alone_and_its_own_head(bert: Saved, tmp_path: Path) -> None:
    base, _ = bert
    state = {f"bert.{key}": value for key, value in _pair(QUERY, 16, 16).items()}
    state |= {"classifier.weight": _draw(5, 16), "classifier.bias": _draw(5)}
    adapter = tmp_path / "adapter"
    _write(adapter, state, task_type="SEQ_CLS", modules_to_save=["classifier"],
           base_model_name_or_path=str(base))  # fmt: skip
    loaded = load(adapter)
    module: Any = loaded.module
    assert type(module).__name__ == "BertForSequenceClassification"
    assert torch.equal(module.classifier.weight, state["classifier.weight"])
    assert not any("random" in note for note in loaded.notes)
    assert any(note.startswith("base weights from") for note in loaded.notes)
    _write(adapter, state, base_model_name_or_path="someone/bert")
    assert "its base is not on this machine" in _error(adapter)
    _write(base, _pair(QUERY, 16, 16))
    _write(adapter, state, base_model_name_or_path=str(base))
    assert "the base of the adapter is another adapter" in _error(adapter)


def test_adapters_in_subfolders_are_named(bert: Saved) -> None:
    folder, model = bert
    _write(folder / "french", _pair(QUERY, 16, 16))
    loaded = load(folder)
    assert any(note.startswith("not merged: the adapters in `french`") for note in loaded.notes)
    found: Any = loaded.module.get_submodule(QUERY).weight
    assert torch.equal(found, model.get_submodule(QUERY).weight)


def test_in_the_dtype_of_the_weights(bert: Saved, tmp_path: Path) -> None:
    folder, model = _saved(tmp_path / "half", bert[1].to(torch.bfloat16))
    state = _pair(QUERY, 16, 16)
    _write(folder, state)
    change = state[f"{QUERY}.lora_B.weight"].double() @ state[f"{QUERY}.lora_A.weight"].double()
    wanted = (model.get_submodule(QUERY).weight.double() + ALPHA / RANK * change).bfloat16()
    found: Any = load(folder).module.get_submodule(QUERY).weight
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("config", "text"),
    [({"peft_type": "IA3"}, "`IA3`"), ({"peft_type": "PREFIX_TUNING"}, "`PREFIX_TUNING`"),
     ({"peft_type": "LOHA"}, "`LOHA`"), ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
     ({"use_qalora": True}, "use_qalora"), ({"layer_replication": [[0, 1]]}, "layer_replication"),
     ({"alpha_pattern": {"(a+)+$": 3}}, "regular expression"), ({"lora_alpha": "6"}, "not a number"),
     ({"use_dora": True}, "without a magnitude")],
)  # fmt: skip
def test_what_is_not_merged_is_refused(bert: Saved, config: dict[str, Any], text: str) -> None:
    folder, _ = bert
    _write(folder, _pair(QUERY, 16, 16), **config)
    assert text in _error(folder)


def test_every_tensor_is_accounted_for(bert: Saved) -> None:
    folder, _ = bert
    _write(folder, _pair(QUERY, 16, 16) | _pair("encoder.layer.7.attention.self.query", 16, 16))
    assert "`encoder.layer.7.attention.self.query`" in _error(folder)
    _write(folder, _pair(QUERY, 16, 16) | {"decoder.weight": _draw(3)})
    assert "`decoder.weight`" in _error(folder)
    _write(folder, {f"{QUERY}.lora_A.weight": _draw(RANK, 16)})
    assert "cannot be merged" in _error(folder)
    _write(folder, _pair(QUERY, 16, 12))
    assert "changes (16, 12) of (16, 16)" in _error(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "without its weights" in _error(folder)
