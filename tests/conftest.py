"""One thread, one seed, no network and no settings from outside, for every test."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
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
from torch._subclasses import fake_impls
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry

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


def _ask_the_dispatcher_once() -> None:
    """Keep torch.export's lists of composite ops, until there are more.

    They are made anew for every capture and every export otherwise: a quarter of the time of a small one.
    """
    known: dict[tuple[str, int, int], frozenset[object]] = {}

    def kept(listed: Callable[[], set[object]]) -> Callable[[], frozenset[object]]:
        def keep() -> frozenset[object]:
            ops = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
            key = (listed.__name__, len(ops), len(torch.ops._dir))
            if key not in known:
                known[key] = frozenset(listed())
            return known[key]

        return keep

    modules: list[Any] = [export.exported_program, export.decomp_utils]
    for module in modules:  # each has names of its own for them
        for name in ("_collect_all_valid_cia_ops", "_collect_all_valid_cia_ops_for_aten_namespace"):
            if hasattr(module, name):
                setattr(module, name, kept(getattr(module, name)))


def _override_composites_once() -> None:
    """Keep what torch.export puts in the place of composite ops while it decomposes, until they change.

    It makes 11,000 functions for 500 ops anew otherwise, which is a third of the time of a small capture.
    """
    module: Any = export.exported_program
    override = module._override_composite_implicit_decomp
    rules: dict[Any, Any] = fake_impls.op_implementations_dict
    known: list[tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]] = []

    @contextlib.contextmanager
    def keep(table: dict[Any, Any]) -> Iterator[None]:
        before = {op: dict(op.py_kernels) for op in table}
        # rules of others: torch drops them for good at the first decomposition, which it must do itself
        ruled = any(op in rules for op in table)
        found = next((item for item in known if item[:2] == (table, before) and not ruled), None)
        if found is None:
            with override(table):
                if not ruled:
                    made = {op: dict(op.py_kernels) for op in table}
                    known.append((dict(table), before, made, {op: rules[op] for op in table}))
                yield
            return
        _, _, during, meanwhile = found
        try:
            for op, kernels in during.items():
                op.py_kernels.update(kernels)
                op._dispatch_cache.clear()
            rules.update(meanwhile)
            yield
        finally:
            for op, kernels in before.items():
                op.py_kernels.clear()
                op.py_kernels.update(kernels)
                op._dispatch_cache.clear()
                rules.pop(op, None)

    module._override_composite_implicit_decomp = keep


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
_override_composites_once()
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
