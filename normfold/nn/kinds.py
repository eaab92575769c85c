"""The norms that take the place of a LayerNorm, by kind: each says in its own file what it is called."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from normfold.nn.base import OfflineNorm


def _all() -> dict[str, type[OfflineNorm]]:
    """Every subclass with a kind, of every module in this folder."""
    folder = Path(__file__).parent
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name != "kinds":
            importlib.import_module(f"{__package__}.{module.name}")
    found: dict[str, type[OfflineNorm]] = {}
    waiting = list(OfflineNorm.__subclasses__())
    while waiting:
        norm = waiting.pop()
        waiting += norm.__subclasses__()
        own = vars(norm).get("kind")
        if own is not None and norm.__module__.startswith("normfold.nn."):
            found[own] = norm
    return dict(sorted(found.items()))


KINDS = _all()
