"""Random tokens for networks that read tokens: every row of the table is equally likely."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.graph import shape_of
from normfold.ops.linear import linear_of
from normfold.ops.reads import operands
from normfold.ops.table import Kind, row_of
from normfold.ranges.generation import cache_of, steps

_COUNT = 64


def reads_tokens(graph: Graph) -> bool:
    """True if every input that is a tensor is an integer one, or the cache of a decoder, and one of them indexes a
    table."""
    cache = cache_of(graph)
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for place, node in enumerate(nodes) if place not in cache]
    tensors = [value for value in values if isinstance(value, Tensor)]
    whole = bool(tensors) and not any(value.is_floating_point() for value in tensors)
    return whole and any(_rows(node) for node in nodes)


def prompts(graph: Graph, seed: int, count: int = 0) -> list[tuple[Tensor, ...]]:
    """Batches of random tokens, of the length that the network was captured with; other inputs as they were, and a
    cache as the network itself fills it.

    Raises:
        UsageError: a network of several inputs with a fixed batch, for which only the example is known.
    """
    random = torch.Generator().manual_seed(seed)
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    size = len(next(leaf for leaf in leaves if isinstance(leaf, Tensor)))
    batches = []
    for _ in range(-(-(count or _COUNT) // size)):
        batch = []
        for node, leaf in zip(nodes, leaves, strict=True):
            rows = _rows(node)
            if not isinstance(leaf, Tensor):
                raise UsageError("a network that takes more than tensors needs `--data`")
            batch.append(
                torch.randint(rows, shape_of(node), generator=random, dtype=leaf.dtype)
                if rows
                else leaf
            )
        batches.append(tuple(batch))
    cache = cache_of(graph)
    return steps(graph, cache, batches) if cache else batches


def _rows(node: fx.Node) -> int:
    """Rows of the smallest table that an input indexes, as it is or moved; 0 if it indexes none, or one by
    arithmetic too, as corners of boxes do whose width is looked up: not every number is valid then."""
    found: list[int] = []
    stack, seen = [(node, True)], {(node, True)}
    while stack:
        current, plain = stack.pop()
        for user in current.users:
            table = linear_of(user) if row_of(user).lookup else None
            if table is not None and table.data is current:
                found.append(shape_of(table.weight)[0] if plain else 0)
            moved = row_of(user).kind is Kind.MOVE and current in operands(user)
            step = (user, plain and moved)
            if (moved or _counts(user)) and step not in seen:
                seen.add(step)
                stack.append(step)
    return min(found, default=0)


def _counts(node: fx.Node) -> bool:
    """True for whole numbers: a comparison gives none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return value.dtype is not torch.bool
