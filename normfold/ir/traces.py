"""What a call leaves on a network: attributes, buffers, inputs that are not what they were before.

A file has no state: every call of it is the first call of the network that was captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfold.errors import CaptureError, last_line
from normfold.ir.fresh import fresh, unchanged
from normfold.ir.graph import is_symbolic

_OWN = {*vars(nn.Module()), "_is_full_backward_hook"}  # what torch keeps on every module
_SHOWN = 4
_LONGEST = 64  # of a list that is looked through


@dataclass(frozen=True)
class Change:
    """An attribute by its path, and its values before and after a call in words."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"`{self.name}` ({self.before}, then {self.after})"


@contextmanager
def watched(module: nn.Module, changes: list[Change]) -> Iterator[None]:
    """Add to ``changes`` the attributes that the first call of a network changes, with both values."""
    before: list[dict[str, Any]] = []
    done = False

    def enter(called: nn.Module, _: Any) -> None:
        before.append(_attributes(called))

    def leave(called: nn.Module, _: Any, __: Any) -> None:
        nonlocal done
        if not done:
            after = _attributes(called)
            changes.extend(_changes(before[0], after))
        done = True

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _attributes(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        if type(part).__module__.startswith("torch."):  # what torch keeps for itself is no state
            continue
        own = {name: _copy(value) for name, value in vars(part).items() if name not in _OWN}
        found |= {f"{path}.{name}".removeprefix("."): value for name, value in own.items()}
    return found


def _copy(value: Any) -> Any:
    """Containers are copied, as a call adds to them; what is in them is compared by identity."""
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, (list, set)) else value


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(name, _shown(before.get(name)), _shown(value))
        for name, value in after.items()
        if not _same(before.get(name), value)
    ]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in list(a)[:_LONGEST])
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a[:_LONGEST], b[:_LONGEST]))
    plain = (bool, int, float, complex, str, bytes, tuple)
    if type(a) in plain and type(b) in plain:
        return type(a) is type(b) and repr(a) == repr(b)
    return False


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    plain = value is None or type(value) in (bool, int, float, str)
    return repr(value)[:20] if plain else f"a {type(value).__name__}"


def made(program: ExportedProgram) -> list[Change]:
    """Buffers to which a call gives another size."""
    found = []
    buffers = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and node.args[0].name in buffers:
            old, new = (item.meta["val"].shape for item in node.args[:2])
            if list(map(str, old)) != list(map(str, new)):
                found.append(Change(buffers[node.args[0].name], _size(old), _size(new)))
    return found


def _size(shape: Sequence[Any]) -> str:
    """``5x6``, free sizes as in the example."""
    return "x".join(str(n.node.hint if is_symbolic(n) else n) for n in shape) or "a number"


def to_trace(module: nn.Module) -> nn.Module:
    """A fresh copy in which buffers that are None are attributes.

    torch.export counts them where it looks for the place of a buffer that a call writes, and takes another.
    """
    copy = fresh(module)
    for part in copy.modules() if copy is not module else ():
        for name in [name for name, value in part._buffers.items() if value is None]:
            del part._buffers[name]
            setattr(part, name, None)
    return copy


def warm(module: nn.Module, args: Any, kwargs: Any) -> nn.Module:
    """A copy of a network after one call.

    Raises:
        CaptureError: the network cannot be copied, or does not run.
    """
    called = fresh(module)
    if called is module:
        raise CaptureError(
            "a call of the network changes the size of its buffers, and it cannot be copied"
        )
    own_args, own_kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), unchanged(called):
            called(*own_args, **own_kwargs)
    except Exception as error:
        raise CaptureError(
            "the network does not run on the example inputs", found=last_line(error)
        ) from error
    return called


def made_note(changes: Sequence[Change]) -> str:
    """What is said of buffers that the first call makes."""
    return (
        f"the first call of the network makes {_named('buffer', changes)}: captured as it is after a call on the "
        "example inputs, and the file holds what they need; larger example inputs make it hold more"
    )


def attributes_note(changes: Sequence[Change]) -> list[str]:
    """What is said of attributes that a call changes."""
    if not changes:
        return []
    return [
        f"a call of the network changes its {_named('attribute', changes, '')}: the file has no state, each call "
        "computes what the first one does"
    ]


def _named(what: str, items: Sequence[object], article: str = "the ") -> str:
    """``the buffers `a`, `b```, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{article}{what}{'s' * (len(items) > 1)} {', '.join(map(str, items[:_SHOWN]))}{more}"


def writes_notes(program: ExportedProgram, own_names: Mapping[str, str]) -> list[str]:
    """What is said of buffers, parameters and inputs that a call writes into."""
    signature = program.graph_signature
    names = dict.fromkeys(signature.buffers_to_mutate.values())
    buffers = [f"`{own_names.get(name, name)}`" for name in names]
    names = dict.fromkeys(signature.parameters_to_mutate.values())
    parameters = [f"`{own_names.get(name, name)}`" for name in names]
    inputs = [f"`{name}`" for name in dict.fromkeys(signature.user_inputs_to_mutate.values())]
    notes = []
    for what, written in (("buffer", buffers), ("parameter", parameters)):
        if written:
            notes.append(
                f"a call of the network changes {_named(what, written)}: the file has no state, each call starts "
                "from the stored values"
            )
    if inputs:
        notes.append(
            f"the network changes its {_named('input', inputs, '')} in place: the file leaves what it is given "
            "as it is"
        )
    return notes
