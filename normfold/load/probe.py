"""Run a forward pass once, and say where it broke."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normfold.errors import last_line
from normfold.ir.fresh import call, fresh


@dataclass(frozen=True)
class Failure:
    """A forward pass that raised: the deepest module that it was in, and what was said."""

    path: str
    message: str


def forward(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Failure | None:
    """`run`, of which only the failure matters."""
    outcome = run(module, args, kwargs)
    return outcome if isinstance(outcome, Failure) else None


def run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Outputs of a copy of the network, without gradients, on copies of the inputs; or the failure."""
    try:
        return _run(module, args, kwargs)
    except (Exception, SystemExit) as error:
        return Failure(_where(fresh(module), args, kwargs), last_line(error))


def is_finite(outputs: Any) -> bool:
    """True if no number among the outputs is infinite or NaN."""
    leaves = pytree.tree_leaves(outputs)
    return all(bool(torch.isfinite(x).all()) for x in leaves if isinstance(x, torch.Tensor))


def _run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    def copy(value: Any) -> Any:
        # An in-place first op would change the example inputs.
        return value.clone() if isinstance(value, torch.Tensor) else value

    args, kwargs = pytree.tree_map(copy, (tuple(args), dict(kwargs)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return call(module, *args, **kwargs)


def _where(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    entered: list[str] = []
    hooks = []
    for path, child in module.named_modules():
        name = path or type(module).__name__

        def enter(_m: nn.Module, _a: Any, name: str = name) -> None:
            entered.append(name)

        def leave(_m: nn.Module, _a: Any, _o: Any, name: str = name) -> None:
            if entered and entered[-1] == name:
                entered.pop()

        hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
    with contextlib.suppress(Exception, SystemExit):  # it is known to fail: the hooks note where
        _run(module, args, kwargs)
    for hook in hooks:
        hook.remove()
    return entered[-1] if entered else type(module).__name__


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """The forward parameters of a module, without ``self``; empty when they cannot be known."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def keywords(module: nn.Module) -> list[str]:
    """Names by which `forward` takes inputs."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters(module) if p.kind in kinds]


def takes_any_keyword(module: nn.Module) -> bool:
    """Whether `forward` has `**kwargs`, or parameters that cannot be known."""
    known = parameters(module)
    return not known or any(p.kind is p.VAR_KEYWORD for p in known)


def signature(module: nn.Module) -> str:
    """``forward(x, mask=None)`` for messages."""
    shown = []
    for p in parameters(module):
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        default = "" if p.default is p.empty else f"={p.default!r}"
        shown.append(f"{star}{p.name}{default}")
    return f"forward({', '.join(shown)})"
