"""Ops on booleans and short integers, for which onnxruntime has no kernel of the op's own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from tests.nets import Compose

SHORT = torch.tensor(2, dtype=torch.int16)


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        (lambda y: torch.where(y > 1, y > 0, y < -1), "Where"),
        (lambda y: torch.where(y > 1, y > 0, False), "Where"),
        (lambda y: torch.where(y[:, :1] > 0, True, y > 1), "Where"),
        (lambda y: (y > 0).masked_fill(y > 1, False), "Where"),
        (lambda y: (y > 0).masked_fill(y[:, :1] < 0, True), "Where"),
        (lambda y: (y > 0) + (y < -1), "Add"),
        (lambda y: (y > 1) + True, "Add"),
        (lambda y: torch.where(y > 0, (y * 9).to(torch.int16), SHORT), ""),
        (lambda y: (y * 9).to(torch.int16).masked_fill(y > 0, 3), ""),
    ],
)
def test_choices_and_sums_of_booleans(
    change: Callable[[Tensor], Tensor], lacking: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Compose(lambda net, x: change(net.fc(x)), fc=nn.Linear(6, 6)).eval()
    result = normfold.convert(module, inputs=[torch.randn(2, 6)], output=tmp_path)
    assert result.ok
    ops = {node.op_type for node in onnx.load(result.artifacts[0]).graph.node}
    assert lacking not in ops
