"""Loaders of a command start no workers, which would wait for ever behind what it gave up."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from normfold.job import confinement
from normfold.job.confinement import Confinement
from normfold.load.workers import read_here

SET = TensorDataset(torch.arange(6.0))


def test_a_command_reads_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_state", Confinement(why="NORMFOLD_CONFINE=off"))
    monkeypatch.setattr(DataLoader, "__init__", DataLoader.__init__)  # put back in the end
    read_here()
    read_here()
    loader = DataLoader(SET, 2, False, None, None, 4, prefetch_factor=2, persistent_workers=True)
    assert (loader.num_workers, loader.batch_size) == (0, 2)
    assert torch.cat([part[0] for part in loader]).tolist() == [0, 1, 2, 3, 4, 5]


def test_python_code_keeps_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_state", Confinement())
    monkeypatch.setattr(DataLoader, "__init__", DataLoader.__init__)
    read_here()
    assert DataLoader(SET, num_workers=1).num_workers == 1
