"""Files are run by the names of the original, and excused by the original's own export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from tests.nets import perturb


class Encoder(nn.Module):
    """Two inputs and two outputs of one shape each, which only their names tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.mu, self.logvar = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.body(x - 2 * y)).relu()
        return {"mu": self.mu(hidden), "logvar": self.logvar(hidden)}


INPUTS = (torch.randn(2, 6), torch.randn(2, 6))


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Encoder())


@pytest.fixture(scope="module")
def file(encoder: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    result = normfold.convert(encoder, inputs=INPUTS, output=folder, name="net")
    assert result.ok
    return folder / "net.onnx"


def renamed(model: Any, names: dict[str, str]) -> None:
    for node in model.graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def turned(values: Any) -> None:
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
    del values[:]
    values.extend(reversed(copies))


@pytest.mark.parametrize(
    ("change", "ok", "note"),
    [
        (lambda model: None, True, ""),
        (lambda model: renamed(model, {"mu": "logvar", "logvar": "mu"}), False, ""),
        (lambda model: turned(model.graph.output), True, ""),
        (lambda model: renamed(model, {"x": "y", "y": "x"}), False, ""),
        (lambda model: turned(model.graph.input), True, ""),
        (lambda model: renamed(model, {"x": "image"}), True, "inputs by their place"),
        (lambda model: renamed(model, {"mu": "mean"}), True, "outputs by their place"),
    ],
)
def test_a_file_is_run_by_names(
    change: Callable[[Any], None],
    ok: bool,
    note: str,
    file: Path,
    encoder: nn.Module,
    tmp_path: Path,
) -> None:
    model = onnx.load(file)
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    check = normfold.verify(encoder, tmp_path / "other.onnx", inputs=INPUTS)
    assert check.ok is ok
    assert note in check.note
    if not note:
        assert "by their place" not in check.note


def test_verify_excuses_what_convert_does(tmp_path: Path) -> None:
    """onnxruntime's average over 112 x 112 positions errs by more than torch's."""
    torch.manual_seed(0)
    module = perturb(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )
    inputs = (torch.randn(1, 3, 224, 224),)
    result = normfold.convert(module, inputs=inputs, output=tmp_path, name="net", batch="static")
    assert result.ok
    judged = [check for check in result.report.all_checks() if check.kind == "onnxruntime-all"]
    assert all("own export errs" in check.note for check in judged)
    assert normfold.verify(module, tmp_path / "net.onnx", inputs=inputs, batch="static")
    graph = normfold.capture(module, (inputs[0],), dynamic=None)
    culprit = normfold.bisect(graph, "canonicalize,fold-affine", file=tmp_path / "net.onnx")
    assert culprit is None
    wrong = onnx.load(tmp_path / "net.onnx")
    bias = next(item for item in wrong.graph.initializer if len(item.dims) == 1)
    value = onnx.numpy_helper.to_array(bias) * 1.01
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not normfold.verify(module, tmp_path / "wrong.onnx", inputs=inputs, batch="static")
