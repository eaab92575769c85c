"""One thread, one seed, no network and no settings from outside, for every test."""

from __future__ import annotations

import copy
import gc
import os
import random
import sys
from pathlib import Path
from typing import Any

# Before torch and huggingface_hub read them; child processes inherit them too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch
from torch import export
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry

sys.path.append(
    str(Path(__file__).parents[1])
)  # `examples` belongs to the clone and is not installed

for _name in [name for name in os.environ if name.startswith("NORMFOLD_")]:
    del os.environ[_name]
torch.set_num_threads(1)
hypothesis.settings.register_profile("normfold", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("normfold")


def _ask_the_dispatcher_once() -> None:
    """Keep torch.export's list of composite ops, until there are more.

    It is made anew for every capture otherwise, which is a quarter of the time of a small one.
    """
    module: Any = export.exported_program
    listed = module._collect_all_valid_cia_ops
    known: dict[tuple[int, int], frozenset[object]] = {}

    def keep() -> frozenset[object]:
        ops = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        key = (len(ops), len(torch.ops._dir))
        if key not in known:
            known[key] = frozenset(listed())
        return known[key]

    module._collect_all_valid_cia_ops = keep


def _read_torchlib_once() -> None:
    """Keep torch.onnx's registry, and give every export a copy of it.

    It parses the source of 500 functions otherwise, which is three quarters of the time of a small export.
    """
    made = ONNXRegistry.from_torchlib
    known: dict[int, ONNXRegistry] = {}

    def keep(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
        if opset_version not in known:
            known[opset_version] = made(opset_version)
        mine = copy.copy(known[opset_version])
        mine.functions = {name: list(found) for name, found in mine.functions.items()}
        return mine

    registry: Any = ONNXRegistry
    registry.from_torchlib = staticmethod(keep)


_ask_the_dispatcher_once()
_read_torchlib_once()


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


@pytest.fixture
def tmp_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one while the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
