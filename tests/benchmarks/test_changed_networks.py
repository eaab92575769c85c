"""Each script about networks that were changed runs, on little."""

from __future__ import annotations

import pytest

from benchmarks import pruned, raw_bytes, recalibrated, tuning


@pytest.mark.slow
def test_recalibrated(capsys: pytest.CaptureFixture[str]) -> None:
    recalibrated.main(
        ["--samples", "32", "--tests", "100", "--corruption", "contrast", "--way", "adabn"]
    )
    *_, row = capsys.readouterr().out.splitlines()
    before, after, folded = map(float, row.strip("| ").split(" | ")[2:])
    assert after == folded
    assert after > before


@pytest.mark.slow
def test_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    tuning.main(["--network", "resnet18", "--side", "64", "--batch", "4", "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    modes = [line.strip("| ").split(" | ") for line in lines[2:4]]
    assert [row[0] for row in modes] == ["eval", "tune"]
    assert float(modes[1][2]) < float(modes[0][2])
    assert float(lines[-1].rpartition(" ")[2]) < 1e-9


@pytest.mark.slow
def test_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    pruned.main(["--network", "resnet18", "--side", "64", "--seconds", "0", "--zeros"])
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert float(row[2]) < 0.8 * float(row[1])
    assert row[-1] == "certified"


@pytest.mark.slow
def test_raw_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    given = ["--crops", "2", "--seconds", "0"]
    raw_bytes.main(["--network", "vit_tiny_patch16_224", *given])
    name, apart, scheme, _ = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (name, scheme) == ("vit_tiny_patch16_224", "int8-dynamic")
    assert float(apart) < 1e-5
