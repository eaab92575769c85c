"""Axes that must follow a free one, because the network demands that sizes of its inputs are equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.ir.capture import Axes
from normfold.ir.paths import named_leaves
from normfold.load import probe

Axis = tuple[str, int]


@dataclass
class Following:
    """Axes of one size each; the first of them was asked to be free."""

    ties: list[list[Axis]] = field(default_factory=list)

    def added_to(self, axes: Axes) -> dict[str, set[int]]:
        """The axes with those that follow them."""
        found = {name: {*own} for name, own in axes.items()}
        for name, axis in (axis for tie in self.ties for axis in tie):
            found.setdefault(name, set()).add(axis)
        return found

    def notes(self, asked: Axes) -> list[str]:
        """What follows without being asked for."""
        found = []
        for (name, axis), *others in self.ties:
            new = [f"`{n}:{a}`" for n, a in others if a not in asked.get(n, ())]
            if new:
                verb = "follows" if len(new) == 1 else "follow"
                found.append(
                    f"{', '.join(new)} {verb} `{name}:{axis}`: the network refuses other sizes"
                )
        return found

    @contextmanager
    def tied(self, module: nn.Module) -> Iterator[None]:
        """Sizes that follow each other are compared at every call: so torch.export knows that they are equal."""

        def compare(_: nn.Module, args: Any, kwargs: Any) -> None:
            leaves = dict(named_leaves(module.forward, args, kwargs))
            for (name, axis), *others in self.ties:
                for other, place in others:
                    _ = leaves[name].shape[axis] == leaves[other].shape[place]

        hook = module.register_forward_pre_hook(compare, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def following(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], axes: Axes, batch: bool
) -> Following:
    """Run the network with free ``axes`` at other sizes; what has the size of one of them may follow it.

    Nothing is run for an axis whose size no other has, nor for a name or an axis that is not there.
    """
    tensors = {
        name: leaf
        for name, leaf in named_leaves(module.forward, args, kwargs)
        if isinstance(leaf, Tensor)
    }
    places = [(name, axis) for name, leaf in tensors.items() for axis in range(leaf.dim())]
    first = places[0] if places else None
    size = {place: tensors[place[0]].shape[place[1]] for place in places}
    found = Following()
    for place in [(name, axis) for name, own in axes.items() for axis in sorted(own)]:
        if place not in size or any(place in tie for tie in found.ties):
            continue
        # the batch is free already, and what follows it
        taken = {p for p in places if p[1] == 0 and batch and first and size[p] == size[first]}
        others = [p for p in places if size[p] == size[place] and p != place and p not in taken]
        if not others:
            continue
        tie = _tie(module, args, kwargs, place, others)
        if tie:
            found.ties.append([place, *tie])
    return found


def refusal(module: nn.Module, args: Any, kwargs: Any, axes: Axes) -> str:
    """What the network says to another size of one of the axes alone; nothing where it runs."""
    leaves = dict(named_leaves(module.forward, args, kwargs))
    for name, axis in [(name, axis) for name, own in axes.items() for axis in sorted(own)]:
        size = int(leaves[name].shape[axis])
        failures = [
            probe.forward(module, *_resized(module, args, kwargs, other, [(name, axis)]))
            for other in (size + 1, 2 * size)
        ]
        if failures[0] is not None and failures[1] is not None:
            return f"with `{name}:{axis}` of {size + 1} alone the network itself says: {failures[0].message}"
    return ""


def _tie(module: nn.Module, args: Any, kwargs: Any, place: Axis, others: list[Axis]) -> list[Axis]:
    """The fewest of the others that must have the size of an axis."""

    def runs(size: int, moved: list[Axis]) -> bool:
        call = _resized(module, args, kwargs, size, [place, *moved])
        return probe.forward(module, *call) is None

    leaves = dict(named_leaves(module.forward, args, kwargs))
    own = int(leaves[place[0]].shape[place[1]])
    for size in (own + 1, 2 * own):  # some networks take even sizes only
        if runs(size, []):
            return []
        single = next(([other] for other in others if runs(size, [other])), None)
        if single is not None:
            return single
        if len(others) > 1 and runs(size, others):
            kept = list(others)
            for other in others:
                less = [item for item in kept if item != other]
                kept = less if runs(size, less) else kept
            return kept
    return []


def _resized(
    module: nn.Module, args: Any, kwargs: Any, size: int, moved: Sequence[Axis]
) -> tuple[Any, Any]:
    """A call with another size along some axes; the values repeat, and so are in their range."""
    made = []
    for name, leaf in named_leaves(module.forward, args, kwargs):
        for axis in [axis for owner, axis in moved if owner == name]:
            index = torch.arange(size, device=leaf.device) % leaf.shape[axis]
            leaf = leaf.index_select(axis, index)
        made.append(leaf)
    _, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
    again: tuple[Any, Any] = pytree.tree_unflatten(made, tree)
    return again
