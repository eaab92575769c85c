"""Tables that torch makes anew for every capture and every export, kept while normfold captures or exports.

They are the same each time: the list of composite ops (a tenth of the time of a small capture), what
`run_decompositions` puts in their place (a third), and the functions of torch.onnx, for which it parses the
source of 500 (three quarters of the time of a small export). A run that exports more than once, as one that times
integers against floats does, and a process that captures many networks have them once.

What is replaced in torch is put back when the call ends. Names that a version of torch lacks are left alone.
"""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

_LISTS = ("_collect_all_valid_cia_ops", "_collect_all_valid_cia_ops_for_aten_namespace")
_REGISTRY = "torch.onnx._internal.exporter._registration"
_lock = threading.Lock()
_depth = 0
_originals: list[tuple[Any, str, Any]] = []
_lists: dict[tuple[str, int, int], frozenset[object]] = {}
_overrides: list[tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]] = []
_registries: dict[Any, Any] = {}


@contextmanager
def kept_tables(*, exports: bool = False) -> Iterator[None]:
    """torch's tables are made once while the block runs; blocks may be nested, and run in several threads.

    Args:
        exports: the block writes ONNX, so that its registry is worth importing.
    """
    global _depth
    if exports:
        with suppress(ImportError):
            importlib.import_module(_REGISTRY)
    with _lock:
        _depth += 1
        replaced = {(id(owner), name) for owner, name, _ in _originals}
        for owner, name, value in _replacements():
            if (id(owner), name) not in replaced:
                _originals.append((owner, name, vars(owner)[name]))
                setattr(owner, name, value)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            while not _depth and _originals:
                setattr(*_originals.pop())


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """What stands in for what."""
    for name in ("torch.export.exported_program", "torch.export.decomp_utils"):
        module: Any = sys.modules.get(name)
        for item in _LISTS:
            if hasattr(module, item):
                yield module, item, _listed_once(item, getattr(module, item))
    module = sys.modules.get("torch.export.exported_program")
    fakes: Any = sys.modules.get("torch._subclasses.fake_impls")
    name = "_override_composite_implicit_decomp"
    if hasattr(module, name) and hasattr(fakes, "op_implementations_dict"):
        rules = fakes.op_implementations_dict
        yield module, name, _overridden_once(getattr(module, name), rules)
    registry = getattr(sys.modules.get(_REGISTRY), "ONNXRegistry", None)
    if "from_torchlib" in vars(registry or object):
        yield registry, "from_torchlib", staticmethod(_read_once(registry.from_torchlib))  # type: ignore[union-attr]


def _listed_once(name: str, listed: Callable[[], set[object]]) -> Callable[[], frozenset[object]]:
    """The list of composite ops, until there are more."""

    def keep() -> frozenset[object]:
        ops = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        key = (name, len(ops), len(torch.ops._dir))
        if key not in _lists:
            _lists[key] = frozenset(listed())
        return _lists[key]

    return keep


def _overridden_once(override: Any, rules: dict[Any, Any]) -> Any:
    """What is put in the place of composite ops while torch decomposes, until they change."""

    @contextmanager
    def keep(table: dict[Any, Any]) -> Iterator[None]:
        before = {op: dict(op.py_kernels) for op in table}
        # rules of others: torch drops them for good at the first decomposition, which it must do itself
        ruled = any(op in rules for op in table)
        found = next(
            (item for item in _overrides if item[:2] == (table, before) and not ruled), None
        )
        if found is None:
            with override(table):
                if not ruled:
                    made = {op: dict(op.py_kernels) for op in table}
                    _overrides.append((dict(table), before, made, {op: rules[op] for op in table}))
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

    return keep


def _read_once(made: Callable[..., Any]) -> Callable[..., Any]:
    """The functions of torch.onnx by opset; every export gets a copy of its own."""

    def keep(*given: Any, **named: Any) -> Any:
        key = (given, tuple(sorted(named.items())))
        if key not in _registries:
            _registries[key] = made(*given, **named)
        mine = copy.copy(_registries[key])
        mine.functions = {name: list(found) for name, found in mine.functions.items()}
        return mine

    return keep
