"""The shipped networks become engines, and half precision leaves what they predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import engines


def test_the_script_builds_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--model", "ResNet-20", "--precision", "fp16"]
    engines.main([*names, f"--output={tmp_path}", "--images=200"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["ResNet-20", "fp16"]]
    assert float(rows[0][-1]) > 94
    assert {path.name for path in (tmp_path / "fp16").iterdir()} >= {
        f"resnet20{suffix}" for suffix in (".engine", ".engine.json", ".trt.onnx", ".report.json")
    }


@pytest.mark.slow
def test_the_language_model_in_bfloat16(tmp_path: Path) -> None:
    row = engines.build("GPT", "bf16", tmp_path, windows=10)
    assert row.metric < 5
    assert row.islands == 0
