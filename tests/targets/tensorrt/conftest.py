"""Machines with and without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from normfold.targets import environment
from normfold.targets.tensorrt import Backend, Gpu, backend, engine, find, write

NO_GPU = "no NVIDIA driver"
Machine = Callable[[Gpu | str], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets which GPU there is, or why there is none."""

    def be(found: Gpu | str) -> None:
        for module in (backend, engine, write, environment):
            monkeypatch.setattr(module, "probe", lambda: found)

    be(NO_GPU)
    return be


@pytest.fixture(scope="session")
def rtx() -> Backend:
    """The builder that needs no GPU; the tests are run where it is installed."""
    return find("tensorrt-rtx")
