"""Files of fixed sizes are judged at those, or the message says how; random numbers are not judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from tests.cli.conftest import TINY, Cli
from tests.cli.nets import tiny
from tests.judge.nets import FOLDED


def static(folder: Path, batch: int) -> Path:
    """A file of `tiny` for one batch."""
    made = normfold.convert(
        tiny(), inputs=[f"{batch}x3x8x8"], batch="static", output=folder, export="onnx"
    )
    assert made.ok
    return made.artifacts[0]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("what", [normfold.verify, normfold.layers])
def test_the_batch_of_the_file_is_taken(what: Any, batch: int, tmp_path: Path) -> None:
    file = static(tmp_path, batch)
    found = what(tiny(), file, [f"{batch}x3x8x8"])
    assert found.ok if what is normfold.verify else found.first is None
    with pytest.raises(UsageError, match=r"(?s)`x` .x3x8x8 instead of .x3x8x8.*--batch static"):
        what(tiny(), file, ["2x3x8x8"])


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
