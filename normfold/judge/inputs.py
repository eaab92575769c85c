"""Inputs that a verdict is based on: seeded random, x100 scale, constant rows, zeros, and the user's own.

Where the batch is dynamic they travel as the rows of one batch, whose size differs from the captured one:
one forward pass covers them all, and shows that the batch is dynamic indeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.graph import Graph
from normfold.graph.graph import is_symbolic

KINDS = ("random", "x100", "constant", "zeros")
# what half precision is measured and judged on: the other cases overflow or underflow in half precision
TYPICAL = ("random", "constant")


@dataclass(frozen=True)
class Case:
    """Flat inputs of one forward pass; ``rows`` names each row of the batch, or is None for one whole."""

    name: str
    leaves: tuple[Any, ...]
    rows: tuple[str, ...] | None = None


def cases(
    graph: Graph,
    seed: int = 0,
    samples: list[tuple[Any, ...]] | None = None,
    kinds: Sequence[str] = KINDS,
) -> list[Case]:
    """The verifier's inputs for a graph, and the user's ``samples`` (flat input tuples) when given."""
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    batched = _batched(graph, leaves)
    generator = torch.Generator().manual_seed(seed)
    made = {
        kind: tuple(
            _fill(leaf, kind, generator, batch) for leaf, batch in zip(leaves, batched, strict=True)
        )
        for kind in kinds
    }
    if any(batched):
        rows = tuple(
            torch.cat([made[kind][index][:1] for kind in kinds]) if batch else leaf
            for index, (leaf, batch) in enumerate(zip(leaves, batched, strict=True))
        )
        found = [Case("rows", rows, tuple(kinds))]
    else:
        found = [Case(kind, values) for kind, values in made.items()]
    shorter = _shorter(graph, made["random"])
    if shorter is not None:
        found.append(Case("shorter", shorter))
    return found + [
        Case(f"sample {index}", tuple(sample)) for index, sample in enumerate(samples or [])
    ]


def _shorter(graph: Graph, leaves: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Inputs one shorter along every dynamic axis but the first; None where there is none, or it cannot be."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    result, found = [], False
    for leaf, node in zip(leaves, nodes, strict=False):
        value = node.meta.get("val")
        sizes: Any = value.shape if isinstance(value, Tensor) else ()
        for axis, size in enumerate(sizes):
            if axis == 0 or not is_symbolic(size):
                continue
            # a size such as 32 * s cannot be one less
            if not size.node.expr.is_symbol or leaf.shape[axis] < 3:
                return None
            leaf, found = leaf.narrow(axis, 0, leaf.shape[axis] - 1), True
        result.append(leaf)
    return tuple(result) if found else None


def _batched(graph: Graph, leaves: list[Any]) -> list[bool]:
    """For each input: does its first size follow the batch?"""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in nodes]
    return [
        isinstance(leaf, Tensor)
        and isinstance(value, Tensor)
        and value.dim() > 0
        and is_symbolic(value.shape[0])
        for leaf, value in zip(leaves, values, strict=False)
    ] + [False] * max(0, len(leaves) - len(values))


def _fill(leaf: Any, kind: str, generator: torch.Generator, batched: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if not (leaf.is_floating_point() or leaf.is_complex()):
        # the example's own values are known to be in range: keep to them
        if kind == "zeros" and leaf.dtype != torch.bool and int(leaf.min()) <= 0:
            return torch.zeros_like(leaf)
        if kind == "constant" and leaf.dtype != torch.bool:
            return torch.full_like(leaf, int(leaf.reshape(-1)[0]))
        return leaf.roll(1, 0) if kind == "x100" and leaf.dim() else leaf
    if kind == "zeros":
        return torch.zeros_like(leaf)
    if kind == "constant":
        return torch.full_like(leaf, 0.75)
    wide = torch.complex64 if leaf.is_complex() else torch.float32
    noise = torch.randn(leaf.shape, generator=generator, dtype=wide)
    return (noise * (100 if kind == "x100" else 1)).to(leaf.dtype)


def own_samples(graph: Graph, inputs: Sequence[Any]) -> list[tuple[Any, ...]] | None:
    """The user's own tensors as a case of the verdict, if there is one for each input of the graph."""
    whole = len(inputs) == len(pytree.tree_leaves((graph.args, graph.kwargs)))
    tensors = bool(inputs) and all(isinstance(item, Tensor) for item in inputs)
    return [tuple(inputs)] if whole and tensors else None
