"""What is between a checkpoint and a network that it does not fit, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from normfold.errors import LoadError
from normfold.load.entries import Checkpoint, quoted
from normfold.load.fit import Fit, Network

_SHOWN = 4


def unfit(
    compared: list[Fit], held: Checkpoint, network: Network, factory: str, where: str
) -> LoadError:
    """The error for weights that fit nowhere, about the entry that comes nearest (the first)."""
    what = f"the weights do not fit the network that `{factory}` makes"
    if not compared or not compared[0].matched:
        return LoadError(
            what,
            where=where,
            found=f"no key of the file is one of the network's: {quoted(held.tensors, _SHOWN)} in the file, "
            f"{quoted(network.own, _SHOWN)} in the network",
            hint="is it the network that was trained? `--model` must make that one, with the arguments of the "
            "training in parentheses",
        )
    best = compared[0]
    said = problems(best, network.own)
    at = f"under `{best.path}`: " if best.path else ""
    if best.rename.added:
        at += f"with `{best.rename.added}` before every key: "
    return LoadError(
        what, where=where, found=at + "; ".join(said), hint=_hint(best, network.own, factory)
    )


def problems(fit: Fit, own: dict[str, Any]) -> list[str]:
    """What is missing, unknown or of another shape, each with its first few names."""
    shapes = [
        f"`{name}` is {shape(fit.state[name])} in the file and {shape(own[name])} in the network"
        for name in fit.shapes
    ]
    listed = [
        f"{len(items)} {word}: {', '.join(items[:_SHOWN])}" + (", ..." if items[_SHOWN:] else "")
        for word, items in (
            ("missing in the file", [f"`{name}`" for name in fit.missing]),
            ("unknown to the network", [f"`{name}`" for name in fit.unexpected]),
            ("of another shape", shapes),
        )
        if items
    ]
    return [*listed, *([fit.refusal] if fit.refusal else [])]


def _hint(fit: Fit, own: dict[str, Any], factory: str) -> str:
    absent = quoted(layers(fit.missing, fit.state), _SHOWN)
    extra = quoted(layers(fit.unexpected, own), _SHOWN)
    call = f"`--model {factory.partition('(')[0]}(NAME=VALUE)`"
    if absent and extra:
        return (
            f"the network has {absent}, the file has {extra} instead: is it the network that was trained? "
            f"Arguments of the training are given in parentheses: {call}"
        )
    if absent:
        return (
            f"the network has {absent} and the file has not: make it without, by arguments in parentheses "
            f"({call}), or give the checkpoint that has all weights"
        )
    if extra:
        return (
            f"the file has {extra} and the network has not: make it with, by arguments in parentheses ({call}); "
            "what is only used in training can be deleted from the file"
        )
    if fit.shapes:
        return f"give the factory the arguments that the training used, which make those shapes: {call}"
    return "is it the network that was trained, of the same version of its code?"


def layers(names: Iterable[str], others: Collection[str]) -> list[str]:
    """The outermost layers that all these names are in and none of the others."""
    known = {
        ".".join(parts[:count])
        for parts in (name.split(".") for name in others)
        for count in range(1, len(parts) + 1)
    }
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        outer = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        found[next((layer for layer in outer if layer not in known), name)] = None
    return list(found)


def shape(value: Any) -> str:
    """The shape of a tensor, or a shape, in words."""
    if isinstance(value, torch.Tensor):
        if is_lazy(value):
            return "not yet known"
        value = value.shape
    return "x".join(map(str, value)) or "a scalar" if isinstance(value, tuple) else "no tensor"
