"""One thread, one seed, no network and no settings from outside, for every test."""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path

# Before torch and huggingface_hub read them; child processes inherit them too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

sys.path.append(
    str(Path(__file__).parents[1])
)  # `examples` belongs to the clone and is not installed

for _name in [name for name in os.environ if name.startswith("NORMFOLD_")]:
    del os.environ[_name]
# Else every process that a test starts compiles all of normfold, and every run rewrites all assertions.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
torch.set_num_threads(1)
hypothesis.settings.register_profile("normfold", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("normfold")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the libraries keep for good: a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it; the width of no terminal."""
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def untimed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers are not timed against floats, but in tests marked `timed`: what is written would depend on how busy
    the machine is."""
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setattr("normfold.steps.placement.applies", lambda step: False)


@pytest.fixture
def tmp_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one while the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
