"""Which names a checkpoint may use.

What `torch.load(weights_only=True)` does with an admitted name decides what may be admitted:

* GLOBAL pushes the object. Nothing runs, so pushing a function is harmless by itself.
* NEWOBJ runs ``cls.__new__(cls, *args)``. Modules and config classes have ``object``'s.
* BUILD runs ``__setstate__`` of admitted classes, else ``__dict__.update``.
* REDUCE *calls* the object with arguments from the file. It is the one vector, and torch lets it
  call every admitted name. Constructors of modules (file paths, hub names, callables) and library
  functions must therefore never be called this way. Pickle builds modules with NEWOBJ, so nothing
  is lost: `opcodes.scan` finds every callee, and only lookups (enums) and plain containers pass.

Function values are kept to tensor arithmetic (`_FUNCTIONS`), because a file can put one where a
forward pass will call it with arguments that `functools.partial` fixed.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import importlib
import inspect
import pathlib
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError, UsageError
from normfold.load.opcodes import Global, Scan, torch_safe

KNOWN = (
    "torch.nn", "torch.ao.nn", "torch.ao.quantization.stubs", "torchvision", "timm",
    "transformers", "normfold",
)  # fmt: skip
_FUNCTIONS = (
    "torch.nn.functional", "timm.layers", "torchvision.ops", "transformers.activations",
    "torchvision.models.optical_flow.raft",
)  # fmt: skip
# Small helper objects that modules carry (hooks, box coders); never pipelines, tools, datasets.
_HELPERS = ("torch.nn", "torchvision.models", "torchvision.ops", "timm.layers", "timm.models")
_HELPER_NAMES = {"transformers.generation.configuration_utils.GenerationConfig"}
_TORCH_FUNCTIONS = {"relu", "tanh", "sigmoid", "selu", "celu", "exp", "sin", "cos", "abs"}
_TORCH: Any = vars(torch._C)["_VariableFunctionsClass"]


def _bound_forward(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, which pickle uses for a bound method such as ``self.forward_x``."""
    if owner is _TORCH:
        if name in _TORCH_FUNCTIONS:
            return getattr(torch, name)
    elif isinstance(owner, nn.Module) and _inner(name):
        method = inspect.getattr_static(type(owner), name, None)
        if isinstance(method, types.FunctionType):
            return types.MethodType(method, owner)
    raise LoadError("a checkpoint may not read this attribute", found=f"getattr(..., {name!r})")


def _inner(name: str) -> bool:
    # Not `save_pretrained`, `push_to_hub`, `load_state_dict` and the like.
    return name.lstrip("_").startswith("forward") or name.endswith("hook")


_PLAIN: dict[Global, Any] = {
    Global("builtins", "getattr"): _bound_forward,
    Global("builtins", "slice"): slice,
    Global("builtins", "range"): range,
    Global("builtins", "frozenset"): frozenset,
    Global("functools", "partial"): functools.partial,
    Global("argparse", "Namespace"): argparse.Namespace,
    Global("types", "SimpleNamespace"): types.SimpleNamespace,
    Global("pathlib", "PosixPath"): pathlib.PurePosixPath,
    Global("torch._C", "_VariableFunctionsClass"): _TORCH,
}


@dataclasses.dataclass(frozen=True)
class Trust:
    """How far a file is trusted: extra packages by dotted prefix, or pickle without limits."""

    modules: tuple[str, ...] = ()
    pickle: bool = False

    @classmethod
    def of(cls, modules: Sequence[str], pickle: bool) -> Trust:
        """Check the names given to ``--trust-module``; raises UsageError on a wrong one."""
        for name in modules:
            if not all(part.isidentifier() for part in name.split(".")):
                raise UsageError(
                    f"`--trust-module {name}` is not a package or module name",
                    hint="write it as in an import statement: `--trust-module myproject.models`",
                )
            if name.split(".")[0] in sys.stdlib_module_names:
                raise UsageError(
                    f"`--trust-module {name}` would let a file call the standard library",
                    hint="if you trust the file completely, say so with `--trust-pickle`",
                )
        return cls(tuple(modules), pickle)

    def admit(self, found: Scan, where: str) -> list[tuple[Any, str]]:
        """Objects for ``torch.serialization.safe_globals`` that the scanned pickle needs.

        Raises:
            LoadError: some names are outside the list; every one of them is in the message.
        """
        admitted: list[tuple[Any, str]] = []
        refused: dict[Global, str] = {}
        for entry in sorted(found.names):
            if torch_safe(entry):
                continue
            try:
                admitted.append((self._resolve(entry), str(entry)))
            except _Refused as reason:
                refused[entry] = str(reason)
        objects = {name: value for value, name in admitted}
        for entry in sorted(found.called - set(refused)):
            if not (torch_safe(entry) or self._callable(entry, objects.get(str(entry)))):
                refused[entry] = "the file would call it while loading"
        if found.unknown and not refused:
            ops = ", ".join(sorted(found.unknown))
            raise LoadError(
                "the file uses pickle instructions that safe loading does not have",
                where=where,
                found=ops,
                hint="save it again with `torch.save(model, path)` and its default protocol",
            )
        if refused:
            raise refusal(where, refused)
        return admitted

    def _resolve(self, entry: Global) -> Any:
        if entry in _PLAIN:
            return _PLAIN[entry]
        if entry.module == "torch._C._nn" and entry.name in vars(nn.functional):
            # `F.gelu` and others are builtins that pickle under their C module.
            return vars(nn.functional)[entry.name]
        if not _under(entry.module, (*KNOWN, *self.modules)):
            raise _Refused("not a known library")
        if not entry.name.isidentifier() or "__main__" in entry.module.split(".")[1:]:
            raise _Refused("not a plain name")
        try:
            value = vars(importlib.import_module(entry.module)).get(entry.name)
        except Exception as error:
            raise _Refused(f"`{entry.module}` cannot be imported ({_last(error)})") from None
        if value is None:
            raise _Refused(f"`{entry.module}` has no `{entry.name}` (another version?)")
        home = getattr(value, "__module__", None)
        # A module's namespace also holds what it imported: `timm.models.os` is not timm's.
        if not isinstance(home, str) or not _under(home, (*KNOWN, *self.modules)):
            raise _Refused(f"defined in `{home or type(value).__name__}`, not in this library")
        if callable(value) and _under(home, self.modules):
            return value
        if isinstance(value, type):
            if not _harmless(value, str(entry)):
                raise _Refused("not a module, an enum or a config class")
        elif not (isinstance(value, types.FunctionType) and _under(home, _FUNCTIONS)):
            raise _Refused("a function, not a class")
        return value

    def _callable(self, entry: Global, value: Any) -> bool:
        if _under(getattr(value, "__module__", None) or "", self.modules):
            return True
        if isinstance(value, type) and issubclass(value, enum.Enum):
            return True
        return entry in _PLAIN and entry.module != "torch._C"


class _Refused(Exception):
    pass


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _harmless(cls: type, name: str) -> bool:
    homes = {base.__module__ for base in cls.__mro__}
    # Graph modules and scripted modules turn strings of their state into code.
    if any(_under(home, ("torch.fx", "torch.jit", "torch._C")) for home in homes):
        return False
    if any("__del__" in vars(base) for base in cls.__mro__):
        return False
    if issubclass(cls, nn.Module | enum.Enum) or dataclasses.is_dataclass(cls):
        return True
    if any(base.__name__ in ("PretrainedConfig", "PreTrainedConfig") for base in cls.__mro__):
        return True
    plain = cls.__new__ is object.__new__
    return plain and (name in _HELPER_NAMES or _under(cls.__module__, _HELPERS))


def _last(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def refusal(where: str, refused: dict[Global, str]) -> LoadError:
    """The error for names outside the allow-list: all of them, and the flag that lifts it."""
    listed = "".join(f"\n    {entry} ({reason})" for entry, reason in sorted(refused.items()))
    if any(entry.module == "__main__" for entry in refused):
        hint = (
            "the class was defined in a script's `__main__`; move it to a module and save again, "
            "or save `model.state_dict()` and load it with `--model file:Class`"
        )
    else:
        tops = sorted({_package(entry) for entry in refused})
        flags = " ".join(f"--trust-module {top}" for top in tops)
        hint = "`--trust-pickle` runs whatever the file says: only for a file that you made"
        if not any(top.split(".")[0] in sys.stdlib_module_names or "<" in top for top in tops):
            hint = f"if you trust that code: `{flags}`; {hint}"
    return LoadError(
        "the file was refused, nothing in it was executed: it names code outside the libraries "
        "that normfold knows",
        where=where,
        found=f"{len(refused)} refused name(s){listed}",
        hint=hint,
    )


def _package(entry: Global) -> str:
    top = entry.module.split(".")[0]
    return ".".join(entry.module.split(".")[:2]) if top == "torch" else top
