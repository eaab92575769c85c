"""Every LayerNorm of the two shipped transformers becomes an RMSNorm; what they predict stays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from examples import gpt, rmsnorm, text


@pytest.mark.slow
def test_the_script_prints_both_models_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--output={tmp_path}", "--images=100", "--windows=10"]
    monkeypatch.setattr("sys.argv", ["rmsnorm", *arguments])
    rmsnorm.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {words[0]: words[1:] for words in map(str.split, lines[1:3])}
    assert rows["ViT"][:5] == ["11", "->", "0", "11", "0"]
    assert rows["GPT"][:5] == ["9", "->", "0", "9", "1"]  # the tie costs one centring op
    accuracies, perplexities = ([float(word) for word in rows[name][-2:]] for name in rows)
    assert accuracies[0] > 60
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1.0)  # one image may sit on the fence
    assert perplexities[0] < 5
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)

    errors = {words[0]: float(words[2]) for words in map(str.split, lines[-3:])}
    assert list(errors) == [str(length) for length in rmsnorm.LENGTHS]
    assert max(errors.values()) < 1e-5
    assert _copies(tmp_path / "gpt_stdlib.onnx", math.prod(gpt.load().token.weight.shape)) == 1


def test_the_table_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a preset that leaves the LayerNorms alone, the row says so."""
    monkeypatch.setattr(rmsnorm, "PRESET", "baked")
    row = rmsnorm.gpt_stdlib(tmp_path, count=2)
    assert (row.layer_norms, row.left, row.rms_norms, row.centrings) == (9, 9, 0, 0)
    assert 1 < row.before < len(text.VOCABULARY)


def _copies(path: Path, size: int) -> int:
    """How many weights of `size` elements an ONNX file holds."""
    import onnx

    return sum(math.prod(tensor.dims) == size for tensor in onnx.load(path).graph.initializer)
