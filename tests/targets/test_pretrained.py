"""Networks of transformers, back in PyTorch, and in folders for `from_pretrained`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from normfold.errors import ExportError
from normfold.report.text import print_report
from normfold.report.verdict import Artefact, Verdict
from normfold.steps.earlier import remove_stale
from tests import torchvision_shim
from tests.targets.back import applied, back, convert, kinds, largest_error, perturbed

torchvision_shim.install()  # transformers imports torchvision


def vit(**options: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    net: nn.Module = ViTForImageClassification(ViTConfig(**{**sizes, **heads, **options}))
    return net


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 1}
    net: nn.Module = LlamaForCausalLM(
        LlamaConfig(**{**sizes, "num_attention_heads": 2, "use_cache": False, **options})
    )
    return net


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    net: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False))
    return net


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    net: nn.Module = ResNetForImageClassification(ResNetConfig(**sizes))
    return net


def folder_of(net: Any, folder: Path) -> str:
    perturbed(net)
    net.save_pretrained(str(folder))
    return str(folder)


def test_a_vit_of_transformers_with_rms_norms(tmp_path: Path) -> None:
    net = vit()
    source = folder_of(net, tmp_path / "vit")
    result = convert(source, tmp_path / "out", "rmsnorm")
    made, pixels = applied(net, result), torch.randn(2, 3, 16, 16)
    assert largest_error(net, made, pixel_values=pixels) < 1e-6
    assert kinds(made) == {"RMSNorm": 5}
    assert any("became an RMSNorm, which `ViTFor" in text for text in result.report.notes)
    assert not (tmp_path / "out" / "vit-hf").exists()


@pytest.mark.parametrize("make", [llama, gpt2, resnet, vit])
def test_a_folder_for_from_pretrained(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net: Any = make()
    source = folder_of(net, tmp_path / "net")
    (tmp_path / "net" / "vocab.txt").write_text("a\n")
    result = convert(source, tmp_path / "out", "folded")
    assert [check.kind for check in result.report.checks[-2:]] == ["module", "from_pretrained"]
    assert all(item.written for item in result.report.artefacts)
    folder = tmp_path / "out" / "net-hf"
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (tmp_path / "net" / "config.json").read_text()
    )
    assert (folder / "vocab.txt").read_text() == "a\n"
    loaded = type(net).from_pretrained(str(folder), local_files_only=True).eval()
    if make in (resnet, vit):
        given = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        given = {"input_ids": torch.randint(0, 20, (2, 8))}
    net.config.use_cache = loaded.config.use_cache = False
    assert largest_error(net, loaded, **given) < 1e-6
    assert largest_error(net, applied(net, result), **given) < 1e-6
    gains = [
        m.weight
        for name, m in loaded.named_modules()
        if "Norm" in type(m).__name__ and not name.endswith(("layernorm", "ln_f"))
    ]
    assert gains
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)


def test_a_tied_embedding_stays_tied_or_is_untied(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (2, 8))
    tied = back(llama(tie_word_embeddings=True), tmp_path / "a", "folded", ids)
    untied = back(llama(tie_word_embeddings=True), tmp_path / "b", "folded", ids, untie=True)

    def shares(net: Any) -> bool:
        return bool(net.lm_head.weight is net.model.embed_tokens.weight)

    assert shares(tied)
    assert not shares(untied)


@pytest.mark.family
def test_positions_that_are_not_read_are_not_guessed(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 1}
    net = perturbed(BertModel(BertConfig(**sizes, num_attention_heads=2)))
    short, full = torch.randint(0, 20, (2, 8)), torch.randint(0, 20, (2, 512))
    with pytest.raises(ExportError, match=r"not read at the sizes.*\n\nhint: capture with inputs"):
        convert(net, tmp_path, "rmsnorm", inputs=(short,))
    for inputs, dynamic in (((full,), ()), ((short,), ("input_ids:1",))):
        made = applied(net, convert(net, tmp_path, "rmsnorm", inputs=inputs, dynamic=dynamic))
        assert largest_error(net, made, full) < 1e-6
        assert kinds(made)["RMSNorm"] > 0


@pytest.mark.family
def test_a_centring_op_is_refused_and_untying_helps(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (2, 8))
    with pytest.raises(ExportError, match=r"takes the mean off(.|\n)*`--untie`"):
        convert(perturbed(gpt2()), tmp_path, "rmsnorm", inputs=(ids,))
    made = back(gpt2(), tmp_path, "rmsnorm", ids, untie=True)
    assert kinds(made) == {"RMSNorm": 3}


def test_a_folder_of_an_earlier_run_goes_with_its_files(tmp_path: Path) -> None:
    source, out = folder_of(vit(), tmp_path / "net"), tmp_path / "out"
    result = convert(source, out, "folded")
    folder = out / "net-hf"
    assert (folder / "model.safetensors").is_file()
    shown = io.StringIO()
    print_report(result.report, Console(file=shown, width=200))
    assert "file      net-hf/model.safetensors: module" in shown.getvalue()
    convert(source, out, "rmsnorm")
    assert (out / "net.safetensors").is_file()
    assert not folder.exists()


def test_what_else_is_in_the_folder_of_an_earlier_run_stays(tmp_path: Path) -> None:
    """Not the file that the report names: somebody else's."""
    report = {"artefacts": [{"path": "o/net-hf/model.safetensors", "format": "module", "files": ["a.json"],
                             "sha256": hashlib.sha256(b"ours").hexdigest()}]}  # fmt: skip
    (tmp_path / "net.report.json").write_text(json.dumps(report))
    folder = tmp_path / "net-hf"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    made = [Artefact("o/net.safetensors", "module", "module", 1, "", Verdict("pass", "", ""))]
    for content, left in ((b"theirs", True), (b"ours", False)):
        (folder / "model.safetensors").write_bytes(content)
        remove_stale(tmp_path, "net", made)
        assert folder.exists() is left


def test_a_network_without_its_pooler_and_no_bars(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 1}
    net: Any = BertModel(BertConfig(**sizes, num_attention_heads=2), add_pooling_layer=False)
    source = folder_of(net, tmp_path / "net")
    capfd.readouterr()
    result = convert(source, tmp_path / "out", "folded")
    assert any("-hf', add_pooling_layer=False)`" in note for note in result.report.notes)
    assert "%" not in capfd.readouterr().err
