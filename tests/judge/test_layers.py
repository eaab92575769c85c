"""Errors layer by layer: the first module from which on a result is another one, in torch and in a file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.report.text import print_report
from tests.nets import perturb


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    assert normfold.convert(net(), "folded", inputs=(X,), output=folder, export="onnx").ok
    return next(folder.glob("*.onnx"))


def faulty(path: Path, name: str, folder: Path) -> Path:
    """The file with one weight off by a thousandth."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    (weight,) = (item for item in model.graph.initializer if item.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, name))
    onnx.save(model, folder / "faulty.onnx")
    return folder / "faulty.onnx"


def test_a_right_file_has_no_first_layer(file: Path) -> None:
    found = normfold.layers(net(), file, (X,))
    states = {layer.path: layer.state for layer in found.layers}
    assert found.first is None
    assert states["head"] == states["blocks"] == states["blocks.2"] == "agrees"
    assert states["blocks.1.conv"] == "other", "its norm is folded into it"
    assert "blocks.1.norm" not in states


@pytest.mark.parametrize(
    ("weight", "path"),
    [("stem.weight", "stem"), ("blocks.1.conv.weight", "blocks.1"), ("head.weight", "head")],
)
def test_the_first_layer_of_a_faulty_file(
    weight: str, path: str, file: Path, tmp_path: Path
) -> None:
    found = normfold.layers(net(), faulty(file, weight, tmp_path), (X,))
    assert found.first is not None
    assert found.first.path.startswith(path)
    assert "test_layers.py" in found.first.op
    before = found.layers[: found.layers.index(found.first)]
    assert all(layer.state != "exceeds" for layer in before)


def test_of_graphs() -> None:
    graph = normfold.capture(net(), (X,))
    result, _ = normfold.run(graph, "canonicalize,fold-affine,restore,bake")
    assert normfold.layers(graph, result).first is None
    result.module.get_parameter("blocks.1.conv.weight").data.mul_(1.001)
    found = normfold.layers(graph, result).first
    assert found is not None
    assert found.path.startswith("blocks.1")


def test_a_stream_that_is_stored_otherwise_is_no_fault() -> None:
    from tests.nets import Encoder

    graph = normfold.capture(perturb(Encoder()), (torch.randn(2, 5, 8),))
    result, report = normfold.run(
        graph, "canonicalize,fold-affine,center-stream,compress-stream,restore,bake"
    )
    assert report.ok
    found = normfold.layers(graph, result)
    assert found.first is None
    assert {layer.state for layer in found.layers} == {"agrees", "other"}


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    torch.onnx.export(net(), (X,), path, dynamo=True, verbose=False)
    with pytest.raises(UsageError, match="does not say which modules its nodes are from"):
        normfold.layers(net(), path, (X,))


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_the_old_exporter_says_it_in_its_names(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    torch.onnx.export(net(), (X,), path, dynamo=False, verbose=False)
    graph = normfold.capture(net(), (X,), dynamic=None)
    found = normfold.layers(graph, path)
    assert {layer.state for layer in found.layers} <= {"agrees", "other"}
    assert {"stem", "blocks.1.conv", "head"} <= {layer.path for layer in found.layers}
    found = normfold.layers(graph, faulty(path, "head.weight", tmp_path))
    assert [layer.path for layer in found.layers if layer.state == "exceeds"] == ["head"]


def test_a_refused_file_names_its_first_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is damaged behind its writer; what is said of it names the module and the line."""
    from normfold.targets import order

    write = order.drafts

    def damaged(kind: str, given: Any) -> Any:
        for draft in write(kind, given):
            if "original" not in draft.path.name:
                faulty(draft.path, "blocks.1.conv.weight", tmp_path).replace(draft.path)
            yield draft

    monkeypatch.setattr("normfold.steps.deliver.drafts", damaged)
    result = normfold.convert(net(), "folded", inputs=(X,), output=tmp_path / "out", export="onnx")
    assert not result.ok
    layers = result.report.layers
    assert layers is not None
    assert layers.first is not None
    assert layers.first.path.startswith("blocks.1")
    data = json.loads(result.report.to_json())
    assert data["layers"]["layers"]
    assert f"the first layer that is wrong: `{layers.first.path}` (" in data["outcome"]
    assert "test_layers.py:27" in data["outcome"]
    console = Console(file=io.StringIO(), width=80)
    print_report(result.report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [line for line in text.splitlines() if line.startswith("layers ")]
    assert layers.first.op in line


def test_a_folded_layer_in_front_of_the_fault_is_not_named(tmp_path: Path) -> None:
    """What is made of it agrees in the network's own forward, which is no module that could be compared."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    graph = normfold.capture(perturb(Plain()), (X,))
    normfold.convert(graph, "folded", output=tmp_path, export="onnx", verify="off")
    found = normfold.layers(graph, faulty(next(tmp_path.glob("*.onnx")), "head.weight", tmp_path))
    assert found.first is not None
    assert found.first.path == "head"
