"""One thread, one seed, no network and no settings from outside, for every test."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before torch and huggingface_hub read them; child processes inherit them too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

for _name in [name for name in os.environ if name.startswith("NORMFOLD_")]:
    del os.environ[_name]
torch.set_num_threads(1)
hypothesis.settings.register_profile("normfold", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("normfold")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tmp_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one while the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
