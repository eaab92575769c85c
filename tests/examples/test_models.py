"""The shipped checkpoints: small, loadable, as accurate as their README says, exportable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from examples import accuracy, nets, training

MODELS = Path(__file__).parents[2] / "examples" / "models"
SUBSET = 500


class Row(NamedTuple):
    """A line of the table in examples/models/README.md; accuracies in percent."""

    file: str
    parameters: int
    size: int
    accuracy: float
    subset_accuracy: float


def rows() -> list[Row]:
    """The table of the README."""
    pattern = r"^\| `([\w.]+)` \|[^|]*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|"
    found = re.findall(pattern, (MODELS / "README.md").read_text(), re.MULTILINE)
    return [
        Row(file, int(count.replace(",", "")), int(size.replace(",", "")), float(full), float(part))
        for file, count, size, full, part in found
    ]


def test_every_checkpoint_has_a_row() -> None:
    elsewhere = {"README.md", "gpt_stdlib.safetensors"}  # tests/examples/test_gpt.py
    shipped = {path.name for path in MODELS.iterdir()} - elsewhere
    assert shipped == {row.file for row in rows()}
    assert len(shipped) == 5


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.file)
def test_checkpoint_is_as_recorded(row: Row) -> None:
    path = MODELS / row.file
    assert path.stat().st_size == row.size < 2_500_000
    module = accuracy.load(path)
    assert not module.training
    assert sum(p.numel() for p in module.parameters()) == row.parameters
    reached = 100 * accuracy.top1(accuracy.torch_predictor(module), SUBSET)
    assert reached == pytest.approx(row.subset_accuracy, abs=1.0)


def test_the_resnet_leaves_room_below_perfect() -> None:
    (resnet,) = (row for row in rows() if row.file == "resnet20.pt")
    assert 90.0 <= resnet.accuracy <= 99.0


@pytest.mark.parametrize("factory", [nets.resnet20, nets.mobilenet_v2_small, nets.vit_tiny_shapes])
def test_export_keeps_the_batch_dynamic(factory: type[nn.Module]) -> None:
    module = factory().eval()
    batch = torch.export.Dim.DYNAMIC(min=1, max=64)
    program = torch.export.export(
        module, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},), strict=False
    )
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), module(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [pytest.param("net.pt", marks=pytest.mark.slow), "net.safetensors"]
)
def test_training_script_writes_what_it_trained(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = nets.vit_tiny_shapes if file.endswith("safetensors") else nets.mobilenet_v2_small
    out = tmp_path / file
    monkeypatch.setattr("sys.argv", ["train", "--epochs=1", "--images=200", f"--out={out}"])
    training.main("net", factory, training.Recipe(epochs=9, rate=1e-3, decay=0.0), Path("unused"))
    assert "epoch  1" in capsys.readouterr().out
    assert isinstance(accuracy.load(out), type(factory()))
