"""How the tensors of a checkpoint fit a network: a search for the prefix under which they do.

What is removed from the full names (`state_dict.model.`) and what is added to them (`backbone.`) is found from
the names of both sides. A layer's own translation of older names (weight norm as a parametrisation, hooks,
`_load_from_state_dict`) counts: what does not fit by name is judged by what `load_state_dict` reports.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normfold.errors import last_line
from normfold.load.entries import Checkpoint, common

# What torch.compile, FSDP, activation checkpointing and DataParallel put between the names of layers.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
_MOST = 64  # prefixes that are compared


@dataclass(frozen=True)
class Rename:
    """From full names to the network's: ``prefix`` goes, ``wrappers`` go inside, ``added`` comes in front."""

    prefix: str
    added: str = ""
    wrappers: frozenset[str] = frozenset()

    def __call__(self, name: str) -> str:
        rest = name[len(self.prefix) :]
        return self.added + _without(rest, self.wrappers)


@dataclass
class Fit:
    """The tensors under one prefix, by the network's names, and what is wrong with them."""

    rename: Rename
    names: list[str]
    state: OrderedDict[str, Any]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    refusal: str | None = None

    @property
    def covers(self) -> bool:
        """Every weight of the network is there, in its shape."""
        return not (self.missing or self.shapes or self.refusal)

    @property
    def whole(self) -> bool:
        """It covers the network, and nothing is left."""
        return self.covers and not self.unexpected

    @property
    def path(self) -> str:
        """Its name for ``--key``."""
        return self.rename.prefix.rstrip(".")

    @property
    def matched(self) -> int:
        return len(self.state) - len(self.unexpected) - len(self.shapes)


class Network:
    """The network that weights are for.

    Args:
        module: the network.
        tries: weights may be copied into it to see what it reports; not for a module of the file itself.
    """

    def __init__(self, module: nn.Module, tries: bool = True) -> None:
        self.module, self.tries = module, tries
        self.own = module.state_dict(keep_vars=True)
        names: dict[int, list[str]] = {}
        for name, value in self.own.items():
            names.setdefault(id(value), []).append(name)
        self.tied = [tied for tied in names.values() if len(tied) > 1]

    def search(self, held: Checkpoint) -> list[Fit]:
        """What was compared, by how much of it matches; what fits wholly alone, where something does."""
        compared: list[Fit] = []
        inside = {part for name in held.tensors for part in name.split(".")[:-1]}
        for added in dict.fromkeys([*_common_prefixes(self.own), *self._parts(held)]):
            own = {name[len(added) :] for name in self.own if name.startswith(added)}
            foreign = frozenset((_WRAPPERS & inside) - {p for name in own for p in name.split(".")})
            for wrappers in (frozenset[str](), foreign) if foreign else (frozenset[str](),):
                fits = list(self._compare(held, own, added, wrappers))
                if any(fit.whole for fit in fits):
                    return fits
                compared += fits
        return sorted(compared, key=lambda fit: (-fit.matched, len(fit.unexpected)))

    def _parts(self, held: Checkpoint) -> list[str]:
        """The part of the network, as a prefix, whose names are most of those in the file."""
        ends = {
            ".".join(parts[start:])
            for parts in (name.split(".") for name in held.tensors)
            for start in range(len(parts))
        }
        votes = _votes(self.own, ends, frozenset())
        return [prefix for prefix, _ in votes.most_common(1)]

    def _compare(
        self, held: Checkpoint, own: Collection[str], added: str, wrappers: frozenset[str]
    ) -> Iterator[Fit]:
        votes = _votes(held.tensors, own, wrappers)
        most = max(votes.values(), default=0)
        prefixes = [prefix for prefix, count in votes.most_common(_MOST) if 2 * count >= most]
        if not prefixes and not added:
            prefixes = _holders(held)[:_MOST]
        for prefix in prefixes:
            names = [name for name in held.tensors if name.startswith(prefix)]
            beyond = len(prefix) > max(len(".".join(held.holders[name])) + 1 for name in names)
            if added and beyond and not _layers(own) > 1:
                continue  # one layer in place of another of the same shape is a guess
            yield self.compare(held, Rename(prefix, added, wrappers), names)

    def compare(self, held: Checkpoint, rename: Rename, names: list[str]) -> Fit:
        """Judge one renaming, by names and shapes and, where these differ, by loading."""
        state = OrderedDict((rename(name), held.tensors[name]) for name in names)
        versions = {
            rename(f"{layer}.").rstrip("."): value
            for layer, value in held.versions.items()
            if f"{layer}.".startswith(rename.prefix)
        }
        if versions:
            state._metadata = versions  # type: ignore[attr-defined]
        fit = Fit(rename, names, state, dense=self._make_dense(state))
        if len(state) < len(names):
            fit.refusal = "two of its keys become one"
            return fit
        self._note(fit, [name for name in self.own if name not in state])
        fit.unexpected = [name for name in state if name not in self.own]
        fit.shapes = [
            name
            for name in self.own
            if name in state and not _same_shape(state[name], self.own[name])
        ]
        fit.refusal = self._untied(state) if self.tries else None
        if not fit.whole and not fit.refusal and self.tries:
            self._try(fit)
        return fit

    def _make_dense(self, state: dict[str, Any]) -> list[str]:
        """Turn sparse tensors that the network has dense, in its shape: a copy into it would fail."""
        found = [
            name
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
            and value.layout != torch.strided
            and _same_shape(value, self.own.get(name))
            and self.own[name].layout == torch.strided
        ]
        for name in found:
            state[name] = state[name].to_dense()
        return found

    def _untied(self, state: dict[str, Any]) -> str | None:
        """The last of several tensors would be taken for all."""
        for names in self.tied:
            stored = [(name, state[name]) for name in names if name in state]
            for name, value in stored[1:]:
                first, other = stored[0]
                if isinstance(value, torch.Tensor) and not same_numbers(value, other):
                    return f"`{first}` and `{name}` are one tensor in the network and differ in the file"
        return None

    def _try(self, fit: Fit) -> None:
        """Put into ``fit`` what the network itself reports, which may translate names and shapes."""
        try:
            reported = self.module.load_state_dict(fit.state, strict=False)
            fit.shapes = []
        except Exception as error:
            if not fit.shapes:
                self._refuse(fit, error)
                return
            rest = OrderedDict((k, v) for k, v in fit.state.items() if k not in set(fit.shapes))
            rest._metadata = getattr(fit.state, "_metadata", {})  # type: ignore[attr-defined]
            try:
                reported = self.module.load_state_dict(rest, strict=False)
            except Exception as second:
                self._refuse(fit, second)
                return
        missing = getattr(reported, "missing_keys", None)
        if missing is not None:  # an overridden `load_state_dict` may give nothing
            self._note(fit, [name for name in missing if name not in fit.shapes])
            fit.unexpected = list(reported.unexpected_keys)

    def _refuse(self, fit: Fit, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines()]
        sizes = [line[:300] for line in lines if line.startswith("size mismatch")]
        fit.refusal = sizes[0] if sizes else last_line(error)
        if sizes:  # the names were known, after their translation
            fit.missing, fit.unexpected = [], []

    def _note(self, fit: Fit, missing: list[str]) -> None:
        # Tied weights are often stored once: safetensors refuses shared memory.
        absent = set(missing)
        present = {id(value) for name, value in self.own.items() if name not in absent}
        missing = [n for n in missing if n not in self.own or id(self.own[n]) not in present]
        fit.counters = [name for name in missing if name.endswith("num_batches_tracked")]
        fit.missing = [name for name in missing if name not in set(fit.counters)]


def _votes(names: Iterable[str], own: Collection[str], wrappers: frozenset[str]) -> Counter[str]:
    """For each prefix of the names, how many of them are the network's without it."""
    votes: Counter[str] = Counter()
    for name in names:
        start = 0
        while True:
            if _without(name[start:], wrappers) in own:
                votes[name[:start]] += 1
            dot = name.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    return votes


def _holders(held: Checkpoint) -> list[str]:
    """Prefixes to try where no name is the network's: what holds tensors, and what its keys begin with."""
    groups: dict[str, list[str]] = {}
    for name in held.tensors:
        groups.setdefault("".join(f"{part}." for part in held.holders[name]), []).append(name)
    return [
        holder + common
        for holder, names in sorted(groups.items(), key=lambda item: -len(item[1]))
        for common in _common_prefixes([name[len(holder) :] for name in names])
    ]


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The empty one, and each that all names share, of whole parts: ``["", "net.", "net.0."]``."""
    parts = common(name.split(".")[:-1] for name in names)
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]


def _without(name: str, wrappers: frozenset[str]) -> str:
    if not wrappers:
        return name
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _layers(names: Iterable[str]) -> int:
    return len({name.rpartition(".")[0] for name in names})


def _same_shape(stored: Any, own: Any) -> bool:
    if not isinstance(stored, torch.Tensor) or not isinstance(own, torch.Tensor):
        return isinstance(stored, torch.Tensor) == isinstance(own, torch.Tensor)
    return not is_lazy(own) and stored.shape == own.shape


def same_numbers(a: Any, b: Any) -> bool:
    """Whether two values of a checkpoint are the same tensor, or equal ones of one type."""
    if a is b:
        return True
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and torch.equal(a, b)
