"""The user's line is named wherever the user's files are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from normfold.errors import CaptureError
from normfold.ir import capture

SOURCE = """from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x)
"""


def test_a_folder_of_the_user_s_that_is_called_normfold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "normfold" / "nets"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("mine_of_the_user", folder / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine_of_the_user", module)
    spec.loader.exec_module(module)
    with pytest.raises(CaptureError) as caught:
        capture(module.Net().eval(), (torch.randn(2, 4, 6),))
    assert str(caught.value.where).startswith(f"{folder / 'mine.py'}:10")
