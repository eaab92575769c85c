"""A prime field in which two networks decide alike: what one of them chose by value, the other one chooses too.

`topk`, `sort`, `argmax` and a suppression of boxes have no meaning in a field, since elements have no order. In
two networks that are the same, each such call reads the same numbers and decides the same. So a network may take
over what another one has decided, and gather the numbers from its own tensor: a shift or a positive scale in front
of `topk` passes as it does for real numbers, and what is wrong with the numbers themselves shows behind it. Where
two calls read other elements, it is an assumption that they decide alike: `Decisions.doubtful` has their names.

Random numbers are the same in both networks too, call by call.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.field import Elements, Field, Uninterpreted, Unknown
from normfold.domains.resized import Resized
from normfold.ir.graph import argument
from normfold.ir.randomness import draws


@dataclass(frozen=True)
class Decision:
    """What a call decided: integers and booleans.

    Attributes:
        call: the op and its arguments, without tensors.
        fingerprint: of all its operands.
    """

    call: str
    fingerprint: str
    found: Tensor


@dataclass
class Decisions:
    """What the calls of one network decided.

    Attributes:
        names: of calls that are in the other network too, by node.
        made: by name.
        doubtful: names of calls that took over a decision that was made on other elements.
    """

    names: dict[fx.Node, str] = field(default_factory=dict)
    made: dict[str, Decision] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)


class Decided(Field):
    """A field whose calls without a meaning decide as those of another network did, where there is one.

    Attributes:
        decisions: of this network.
        leader: those of the other network.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decisions = Decisions()
        self.leader: Decisions | None = None
        self._draws: dict[str, int] = {}

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = not any(isinstance(x, Unknown) for x in pytree.tree_leaves((args, kwargs)))
        if known and draws(node):
            args, kwargs = pytree.tree_map(self._counted, (args, kwargs))
            return self._hashed(node, args, kwargs, "it draws random numbers")
        return super().run(node, args, kwargs)

    def _hashed(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], why: str
    ) -> Any:
        if draws(node):
            return self._drawn(node, args, kwargs, why)
        result = super()._hashed(node, args, kwargs, why)
        leaves, tree = pytree.tree_flatten(result)
        if not leaves or not isinstance(leaves[-1], Tensor):
            return result
        if len(leaves) == 1:
            return pytree.tree_unflatten([self._choice(node, args, kwargs, leaves[0])], tree)
        x = args[0] if args else kwargs.get("self")
        if len(leaves) > 2 or not isinstance(x, Tensor) or not _selects(node, x, leaves[1]):
            return result
        places = self._choice(node, args, kwargs, leaves[1])
        return pytree.tree_unflatten(
            [Elements(_at(x, argument(node, "dim"), places)), places], tree
        )

    def _choice(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], own: Tensor
    ) -> Tensor:
        """What the other network decided in this call; where there is none, what this one does."""
        given = [x for x in pytree.tree_leaves((args, kwargs)) if not isinstance(x, Tensor)]
        call, mark = f"{node.target} {given}", self.uninterpreted[node].fingerprint
        name = self.decisions.names.get(node, "")
        other = self.leader.made.get(name) if self.leader is not None else None
        if other is not None and other.call == call and other.found.shape == own.shape:
            if other.fingerprint != mark:
                self.decisions.doubtful.add(name)
            own = other.found
        if name:
            self.decisions.made[name] = Decision(call, mark, own)
        return own

    def _drawn(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> Any:
        """What a call draws: other numbers than the call before it, and the same in both networks."""
        op = str(node.target)
        count = self._draws[op] = self._draws.get(op, 0) + 1
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(zlib.crc32(f"{op} {count}".encode()))
            result = super()._hashed(node, args, kwargs, why)
        mark = f"{count} {self.uninterpreted[node].fingerprint}"
        self.uninterpreted[node] = Uninterpreted(why, mark)
        leaves, tree = pytree.tree_flatten(result)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Elements):
                leaves[index] = self.random_input(leaf.value, f"{index} {mark}")
        return pytree.tree_unflatten(leaves, tree)


def _selects(node: fx.Node, x: Tensor, places: Tensor) -> bool:
    """True for an op that gives numbers of a tensor along an axis, and where they stand: topk, sort, max."""
    if not isinstance(argument(node, "dim"), int) or not x.dim():
        return False
    return places.dtype == torch.int64 and x.dim() - places.dim() in (0, 1)


def _at(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """The numbers that stand at places along an axis, which may be gone from them."""
    if places.dim() == x.dim():
        return x.gather(axis, places)
    return x.gather(axis, places.unsqueeze(axis)).squeeze(axis)


class ResizedDecided(Decided, Resized):
    """The same at smaller sizes than the capture's."""
