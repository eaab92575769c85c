"""`pkg.mod:factory(kwargs)` and `timm:NAME(kwargs)`: networks that Python code makes."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from normfold.errors import EnvironmentMissing, LoadError, NormfoldError, UsageError, last_line
from normfold.load.types import Found
from normfold.load.workers import read_here

_FACTORY = re.compile(r"^([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.\w+)*)\s*(\(.*\))?$")
_TIMM = re.compile(r"^timm:([\w.\-]+)\s*(\(.*\))?$", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """What to call, with literal arguments."""

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    called: bool

    @classmethod
    def parse(cls, text: str) -> Call:
        """Parse ``pkg.mod:factory`` or ``pkg.mod:factory(num_classes=10)``.

        Raises:
            UsageError: another form, or arguments that are not literals.
        """
        match = _FACTORY.match(text.strip())
        if match is None:
            raise UsageError(
                f"`{text}` is not of the form `pkg.mod:factory`",
                hint="write the module, a colon and the function or class that makes the network, "
                "for example `myproject.models:resnet20(num_classes=10)`",
            )
        args, kwargs = literals(match[3], text)
        return cls(match[1], match[2], args, kwargs, match[3] is not None)


def looks_like(text: str) -> bool:
    """Whether a MODEL text has the form of a factory."""
    return _FACTORY.match(text.strip()) is not None


def literals(text: str | None, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in ``(a, b=c)``: Python literals only; UsageError otherwise."""
    if not text:
        return (), {}
    try:
        node = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("not a call")
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        kwargs = {str(pair.arg or 1 / 0): ast.literal_eval(pair.value) for pair in node.keywords}
    except (ValueError, SyntaxError, ZeroDivisionError, TypeError):
        raise UsageError(
            "arguments in parentheses must be Python literals",
            where=where,
            found=text,
            hint="for example `(num_classes=10, name='a')`",
        ) from None
    return args, kwargs


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make random weights repeatable without touching the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def working_folder_importable() -> None:
    """Let a project's own modules be imported from its folder, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # behind what is installed, which nothing here may stand in for


def build(text: str, seed: int) -> Found:
    """Call a factory.

    Raises:
        LoadError: it is not there, raises, or returns something else than an nn.Module.
        UsageError: the text is malformed.
    """
    call = Call.parse(text)
    target = lookup(call, text)
    if isinstance(target, nn.Module) and not call.called:
        return Found(target, f"the module `{text}`")
    if not callable(target):
        raise LoadError("the factory is not callable", where=text, found=type(target).__name__)
    try:
        with seeded(seed):
            made = target(*call.args, **call.kwargs)
    except (Exception, SystemExit) as error:
        raise LoadError(
            "the factory raised an exception",
            where=origin(error) or text,
            found=last_line(error),
            hint="it must build the network from the arguments in parentheses alone, "
            f"for example `{call.module}:{call.name}(num_classes=10)`",
        ) from error
    if not isinstance(made, nn.Module):
        raise LoadError(
            "the factory did not return an nn.Module",
            where=text,
            found=f"an object of type `{type(made).__name__}`",
        )
    return Found(made, f"the factory `{text}`")


def resolve(text: str) -> Any:
    """What ``pkg.mod:name`` is, or what ``pkg.mod:name(k=5)`` returns.

    Raises:
        LoadError: it is not there, cannot be called, or raises.
        UsageError: the text is malformed.
    """
    call = Call.parse(text)
    target = lookup(call, text)
    return invoke(target, text, *call.args, **call.kwargs) if call.called else target


def invoke(function: Any, text: str, *args: Any, **kwargs: Any) -> Any:
    """The user's function called; LoadError, with the line that raised, when it fails."""
    if not callable(function):
        raise LoadError("it is not callable", where=text, found=type(function).__name__)
    try:
        return function(*args, **kwargs)
    except NormfoldError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"`{text}` raised an exception",
            where=origin(error) or text,
            found=last_line(error),
        ) from error


def lookup(call: Call, text: str) -> Any:
    """The object that a text names, not called; LoadError where there is none."""
    working_folder_importable()
    read_here()
    try:
        value: Any = importlib.import_module(call.module)
    except (Exception, SystemExit) as error:
        named = (isinstance(error, ModuleNotFoundError) and error.name) or ""
        mine = bool(named) and (call.module == named or call.module.startswith(f"{named}."))
        what = f"there is no module `{named}`" if mine else f"importing `{call.module}` failed"
        raise LoadError(
            what,
            where=text if mine else origin(error) or text,
            found=None if mine else last_line(error),
            hint=f"the module is searched in the current folder ({Path.cwd()}) and in the "
            "installed packages",
        ) from error
    for part in call.name.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise LoadError(
                f"`{call.module}` has no `{call.name}`",
                where=text,
                hint=_meant(part, names),
            )
        value = getattr(value, part)
    return value


def origin(error: BaseException) -> str | None:
    """File and line, outside this one, that an exception came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    trace, line = error.__traceback__, None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<"):
            line = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _meant(name: str, names: list[str]) -> str | None:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return "did you mean " + " or ".join(f"`{item}`" for item in close) + "?" if close else None


def optional(name: str, why: str) -> ModuleType:
    """Import an optional package where it is used.

    Raises:
        EnvironmentMissing: it is not installed, or fails to import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise EnvironmentMissing(
                f"`{name}` needs `{error.name}`, which is not installed", hint=f"needed to {why}"
            ) from None
        raise EnvironmentMissing(
            f"`{name}` is not installed", hint=f"`pip install {name}`, needed to {why}"
        ) from None
    except Exception as error:
        torchvision = "torchvision" in str(error)
        raise EnvironmentMissing(
            f"`{name}` is installed but cannot be imported",
            found=last_line(error),
            hint="`torchvision` is of another build than `torch`: install the one that belongs to it, "
            f"or none where `{name}` works without it"
            if torchvision
            else None,
        ) from error


def build_timm(text: str, seed: int) -> Found:
    """Create `timm:NAME(kwargs)`; weights are random unless `pretrained=True` is among them."""
    match = _TIMM.match(text.strip())
    if match is None:
        raise UsageError(
            f"`{text}` is not of the form `timm:NAME`",
            hint="for example `timm:resnet18` or `timm:vit_tiny_patch16_224(img_size=64)`",
        )
    name = match[1]
    args, kwargs = literals(match[2], text)
    if args:
        raise UsageError("arguments of a timm model need names", where=text)
    timm = optional("timm", "create timm models")
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise LoadError(
            f"timm {timm.__version__} has no model `{name}`",
            hint=_meant(name, known) or "`timm.list_models()` lists them",
        )
    pretrained = kwargs.pop("pretrained", False)
    found = Found(nn.Identity(), f"`{name}` from timm {timm.__version__}")
    try:
        with seeded(seed):
            try:
                found.module = timm.create_model(name, pretrained=pretrained, **kwargs)
            except TypeError as error:
                if "img_size" not in kwargs or "img_size" not in str(error):
                    raise
                # Convolutional networks take any size and therefore no such argument.
                side = kwargs.pop("img_size")
                found.image_size = (side, side) if isinstance(side, int) else tuple(side)
                found.module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:
        raise LoadError(
            f"timm could not create `{name}`", where=text, found=last_line(error)
        ) from error
    if not pretrained:
        found.notes.append("weights are random: add `(pretrained=True)` to download trained ones")
    return found
