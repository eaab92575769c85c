from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from normfold.data.opening import capture_source
from normfold.errors import LoadError
from normfold.ir.capture import placeholders
from normfold.ir.graph import is_symbolic
from normfold.job import Source
from normfold.load import load

Saved = tuple[Path, Any]  # the folder and the model that was saved in it


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=50,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="5KB")
    return folder, model


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    import shutil

    return shutil.copytree(saved[0], tmp_path / "model")


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps(config))


def _error(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_samples_do_not_fix_the_length(saved: Saved, tmp_path: Path) -> None:
    """A file that is calibrated on texts of one length is fed with others."""
    folder, _ = saved
    rows = np.random.default_rng(0).integers(50, size=(6, 9))
    np.savez(tmp_path / "texts.npz", input_ids=rows, attention_mask=np.ones_like(rows))
    graph = capture_source(Source(str(folder), data=tmp_path / "texts.npz"))
    sizes = [node.meta["val"].shape for node in placeholders(graph)]
    assert len(sizes) == 2
    assert all(is_symbolic(size) for shape in sizes for size in shape)
    fixed = capture_source(Source(str(folder), inputs=("input_ids:2x9:i64",)))
    assert placeholders(fixed)[0].meta["val"].shape[1] == 9  # a size that was asked for stays


def test_a_sharded_folder(saved: Saved) -> None:
    folder, model = saved
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = load(folder)
    assert type(loaded.module).__name__ == "BertForSequenceClassification"
    assert loaded.inputs_from == "HF config"
    assert loaded.args[0].shape == (2, 16)
    assert loaded.args[0].dtype == torch.int64
    ours = loaded.module.state_dict()
    assert all(torch.equal(ours[k], v) and ours[k].dtype == v.dtype
               for k, v in model.state_dict().items())  # fmt: skip


def test_pickled_weights_are_read_safely_or_refused(
    folder: Path, saved: Saved, evil: object, proof: Path
) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(saved[1].state_dict(), folder / "pytorch_model.bin")
    loaded = load(folder)
    assert any("read without running them" in note for note in loaded.notes)
    torch.save({**saved[1].state_dict(), "x": evil}, folder / "pytorch_model.bin")
    text = _error(folder)
    assert not proof.exists()
    assert "pytorch_model.bin" in text
    assert ".system (" in text or ".eval (" in text


def test_remote_code_is_refused(folder: Path) -> None:
    _change(folder, auto_map={"AutoModel": "modeling_x.Model"}, architectures=["XModel"])
    (folder / "modeling_x.py").write_text("raise SystemExit('ran')")
    assert "auto_map" in _error(folder)
    _change(folder, architectures=["BertForSequenceClassification"], model_type="xbert")
    assert "auto_map" in _error(folder)
    _change(folder, model_type="bert", auto_map={}, attn_implementation="someone/kernel")
    assert _error(folder)


def test_code_is_not_needed_where_transformers_has_the_class(folder: Path, saved: Saved) -> None:
    _change(folder, auto_map={"AutoModel": "modeling_x.Model", "AutoConfig": "x--y.Config"})
    (folder / "modeling_x.py").write_text("raise SystemExit('ran')")
    loaded = load(folder)
    assert type(loaded.module) is type(saved[1])
    assert any("`auto_map` is ignored" in note for note in loaded.notes)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    state = {f"encoder.{key}": value for key, value in saved[1].state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    assert "may belong to the code that the folder brings" in _error(folder)
    _change(folder, text_config={"auto_map": {"AutoModel": "modeling_x.Model"}})
    assert "auto_map" in _error(folder)


def test_damaged_folders(folder: Path) -> None:
    _change(folder, architectures=["BertForSequenceClasification"])
    assert "did you mean `BertForSequenceClassification`" in _error(folder)
    (folder / "config.json").write_text("{")
    assert "not valid" in _error(folder)
    (folder / "config.json").write_text("{}")
    assert "architectures" in _error(folder)
    _change(folder, architectures=["BertConfig"], model_type="bert")
    assert "not a model class" in _error(folder)
    _change(folder, architectures=["BertModel"])
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert "could not load" in _error(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert "no weights" in _error(folder)


@pytest.mark.parametrize("names", [[], ["net.py"], ["readme.md", "model.safetensors"]])
def test_a_folder_without_a_config_needs_no_transformers(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "the folder has no `config.json`" in _error(tmp_path)


def test_encoder_decoder_and_audio_get_every_input(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50,
        max_source_positions=20, num_mel_bins=8, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=1,
    )  # fmt: skip
    loaded = load(transformers.WhisperModel(config))
    assert loaded.args[0].shape == (2, 8, 40)
    assert loaded.kwargs["decoder_input_ids"].dtype == torch.int64
    module: Any = loaded.module
    assert not module.config.use_cache
    assert config.use_cache


@pytest.mark.parametrize(
    ("key", "value"),
    [("attribute_map", {"backbone": "other"}), ("transformers_weights", "sub/m.safetensors.index.json"),
     ("checkpoint_path", "/etc/passwd"), ("architecture", "hf-hub:evil/repo"), ("backbone", "local-dir:/tmp")],
)  # fmt: skip
def test_a_config_does_not_lead_away(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changed in ({**config, key: value}, {**config, "backbone_config": {key: value}}):
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(LoadError, match=key):
            load(folder)


def test_pickles_are_read_by_us_whatever_lies_beside_them(
    folder: Path, saved: Saved, evil: object, proof: Path
) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "other.safetensors").write_bytes(b"")
    torch.save({**saved[1].state_dict(), "x": evil}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="nothing in it was executed"):
        load(folder)
    assert not proof.exists()


def test_an_index_names_files_beside_it(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "../secret.safetensors"}})
    )
    with pytest.raises(LoadError, match="outside the folder"):
        load(folder)
