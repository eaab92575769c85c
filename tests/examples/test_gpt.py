"""The shipped GPT: as recorded, causal, tied, capturable with any batch and length, trainable by its script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import normfold
from examples import gpt, text, train_gpt

README = (gpt.MODEL.parent / "README.md").read_text()
WINDOWS = 40


def ids(count: int = 3, length: int = text.CONTEXT) -> torch.Tensor:
    return torch.from_numpy(text.windows(text.validation_set(), count)[0][:, :length])


def test_the_weights_are_as_recorded() -> None:
    row = re.search(
        r"^\| `gpt_stdlib.safetensors` \|[^|]*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|",
        README,
        re.MULTILINE,
    )
    assert row is not None
    count, size, recorded = (float(cell.replace(",", "")) for cell in row.groups())
    network = gpt.load()
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == count < 1_200_000
    assert gpt.MODEL.stat().st_size == size < 3_000_000
    # another Python has other text; a table of pairs of characters reaches 11.7
    assert text.perplexity(gpt.torch_predictor(network), WINDOWS) < recorded + 1 < 5


def test_untrained_it_guesses() -> None:
    torch.manual_seed(0)
    found = text.perplexity(gpt.torch_predictor(gpt.gpt_stdlib().eval()), WINDOWS)
    assert 60 < found < 130


def test_no_character_sees_the_next() -> None:
    network, whole = gpt.load(), ids()
    changed = whole.clone()
    changed[:, 50:] = (changed[:, 50:] + 1) % len(text.VOCABULARY)
    before, after = network(whole), network(changed)
    torch.testing.assert_close(before[:, :50], after[:, :50])
    assert (before[:, 50:] - after[:, 50:]).abs().max() > 1


def test_the_head_is_the_embedding() -> None:
    network = gpt.load()
    matrices = [
        p for p in network.parameters() if tuple(p.shape) == (96, network.token.embedding_dim)
    ]
    assert len(matrices) == 1
    network(ids(length=5))[..., 7].sum().backward()
    (gradient,) = (p.grad for p in matrices)
    assert gradient is not None
    absent = sorted(set(range(96)) - set(ids(length=5).flatten().tolist()) - {7})
    assert gradient[7].abs().max() > 0
    assert gradient[absent].abs().max() == 0  # neither read nor asked for


def test_capture_keeps_batch_and_length_dynamic() -> None:
    network = gpt.load()
    axes = {0: Dim("batch"), 1: Dim("length", max=text.CONTEXT)}
    graph = normfold.capture(network, (ids(2, 16),), dynamic={"ids": axes})
    for batch, length in ((1, 1), (3, 47), (2, text.CONTEXT)):
        x = ids(batch, length)
        torch.testing.assert_close(graph(x), network(x))


@pytest.mark.slow
def test_the_training_script_lowers_the_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "net.safetensors"
    monkeypatch.setattr(train_gpt, "REPORT", 10)
    monkeypatch.setattr(train_gpt, "BATCH", 8)
    monkeypatch.setattr("sys.argv", ["train_gpt", "--steps=20", "--threads=1", f"--out={out}"])
    train_gpt.main()
    assert "step    20  loss" in capsys.readouterr().out
    assert text.perplexity(gpt.torch_predictor(gpt.load(out)), WINDOWS) < 40


def test_the_script_prints_the_perplexity_of_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpt", "--windows=8"])
    gpt.main()
    printed = float(capsys.readouterr().out.split()[0])
    assert printed == pytest.approx(text.perplexity(gpt.torch_predictor(gpt.load()), 8), abs=1e-3)
