"""Files of fixed sizes are judged at those, or the message says how; random numbers are not judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.judge.fixed import sizes_in
from tests.cli.conftest import TINY, Cli
from tests.cli.nets import tiny
from tests.judge.nets import FOLDED


def static(folder: Path, batch: int, export: Literal["onnx", "openvino"] = "onnx") -> Path:
    """A file of `tiny` for one batch."""
    made = normfold.convert(
        tiny(), inputs=[f"{batch}x3x8x8"], batch="static", output=folder, export=export
    )
    assert made.ok
    return next(path for path in made.artifacts if path.suffix in (".onnx", ".xml"))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("what", [normfold.verify, normfold.layers])
def test_the_batch_of_the_file_is_taken(what: Any, batch: int, tmp_path: Path) -> None:
    file = static(tmp_path, batch)
    found = what(tiny(), file, [f"{batch}x3x8x8"])
    assert found.ok if what is normfold.verify else found.first is None
    with pytest.raises(UsageError, match=r"(?s)`x` .x3x8x8 instead of .x3x8x8.*--batch static"):
        what(tiny(), file, ["2x3x8x8"])


def test_of_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = static(tmp_path, 3, "openvino")
    assert normfold.verify(tiny(), file, ["3x3x8x8"]).ok
    with pytest.raises(UsageError, match="`x` 3x3x8x8 instead of 1x3x8x8"):
        normfold.verify(tiny(), file, ["1x3x8x8"])
    free = normfold.convert(tiny(), inputs=["2x3x8x8"], output=tmp_path / "free", export="openvino")
    (other,) = (path for path in free.artifacts if path.suffix == ".xml")
    assert sizes_in(other) == [(None, 3, 8, 8)]
    assert normfold.verify(tiny(), other, ["2x3x8x8"]).ok


def test_the_command_that_the_message_names_works(cli: Cli, tmp_path: Path) -> None:
    file = static(tmp_path, 3)
    for command in ("verify", "bisect"):
        assert cli(command, TINY, file, "--input", "3x3x8x8").status == 0
        ran = cli(command, TINY, file)
        assert ran.status == 2
        ran.one_error("the file has other sizes than the network was captured at", "3x3x8x8")
        options = re.search(r"hint: `(.*?)`", ran.err)
        assert options is not None
        assert cli(command, TINY, file, *options[1].split()).status == 0


def test_a_captured_graph_with_a_free_batch(tmp_path: Path) -> None:
    file = static(tmp_path, 3)
    x = torch.randn(3, 3, 8, 8)
    free, fixed = normfold.capture(tiny(), (x,)), normfold.capture(tiny(), (x,), dynamic=None)
    assert normfold.verify(fixed, file).ok
    assert normfold.bisect(fixed, FOLDED, file=file) is None
    with pytest.raises(UsageError, match="`x` 3x3x8x8 instead of batchx3x8x8"):
        normfold.verify(free, file)
    with pytest.raises(UsageError, match="`x` 3x3x8x8 instead of batchx3x8x8"):
        normfold.bisect(free, FOLDED, file=file)


class Noisy(nn.Module):
    """A ReLU and noise."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y + torch.randn_like(y) * 1e-3


def test_random_numbers_are_named_and_not_found_equivalent() -> None:
    x = (torch.randn(2, 4),)
    for original, result in (
        (Noisy(), Noisy()),
        (normfold.capture(Noisy(), x),) * 2,
        (nn.ReLU(), normfold.capture(Noisy(), x)),
    ):
        check = normfold.verify(original, result, x)
        assert not check.ok
        assert check.failures()
        assert "draws random numbers (`randn_like` at " in check.note
    dropout = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    assert normfold.verify(dropout, dropout, x).ok, "switched off"
