"""The functions of torch.onnx, for which every export parses the source of 500: read once in a process.

That is three quarters of the time of a small export. A run that exports more than once, as one that times integers
against floats does, has them once. What is replaced in torch is put back when the call ends; a version of torch
without that name is left alone.
"""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_REGISTRY = "torch.onnx._internal.exporter._registration"
_lock = threading.Lock()
_depth = 0
_original: Any = None
_registries: dict[Any, Any] = {}


@contextmanager
def kept_registry() -> Iterator[None]:
    """torch's registry is made once while the block runs; blocks may be nested, and run in several threads."""
    global _depth, _original
    with suppress(ImportError):
        importlib.import_module(_REGISTRY)
    kind: Any = getattr(sys.modules.get(_REGISTRY), "ONNXRegistry", None)
    if "from_torchlib" not in vars(kind or object):
        yield
        return
    with _lock:
        if not _depth:
            _original = vars(kind)["from_torchlib"]
            kind.from_torchlib = staticmethod(_read_once(kind.from_torchlib))
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                kind.from_torchlib = _original


def _read_once(made: Callable[..., Any]) -> Callable[..., Any]:
    """Functions by opset; every export gets a copy of its own."""

    def keep(*given: Any, **named: Any) -> Any:
        key = (given, tuple(sorted(named.items())))
        if key not in _registries:
            _registries[key] = made(*given, **named)
        mine = copy.copy(_registries[key])
        mine.functions = {name: list(found) for name, found in mine.functions.items()}
        return mine

    return keep
