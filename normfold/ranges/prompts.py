"""Tokens for networks that read them: what a language model writes itself, and random ones for all others.

A causal network that scores its own tokens draws every token of a prompt at once, from what it says of those in
front, again and again: after k rounds the first k tokens are a sample of it (Jacobi iteration; Song et al. 2021,
"Accelerating feedforward computation via parallel nonlinear equation solving", arXiv 2002.03629), and a few rounds
give all positions neighbours as it expects them. Calibration on a network's own text: Liu et al. 2023, "LLM-QAT",
arXiv 2305.17888.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.graph import is_symbolic, shape_of
from normfold.ops.linear import linear_of
from normfold.ops.reads import operands
from normfold.ops.table import Kind, row_of
from normfold.ranges.generation import cache_of, steps

_COUNT = 64
_LENGTH = 64  # of prompts whose length is free
_ROUNDS = 8


@dataclass(frozen=True)
class Prompts:
    """Batches of flat inputs; ``written``: the network wrote them, else they are random."""

    batches: list[tuple[Tensor, ...]]
    written: bool


def reads_tokens(graph: Graph) -> bool:
    """True if every input that is a tensor is an integer one, or the cache of a decoder, and one of them indexes a
    table."""
    cache = cache_of(graph)
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for place, node in enumerate(nodes) if place not in cache]
    tensors = [value for value in values if isinstance(value, Tensor)]
    whole = bool(tensors) and not any(value.is_floating_point() for value in tensors)
    return whole and any(_rows(node) for node in nodes)


def prompts(graph: Graph, seed: int, count: int = 0) -> Prompts:
    """Batches of tokens, of the length that the network was captured with or, where it is free, of `_LENGTH`.

    Other inputs are as they were, and a cache as the network itself fills it.

    Raises:
        UsageError: a network of several inputs with a fixed batch, for which only the example is known.
    """
    random = torch.Generator().manual_seed(seed)
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UsageError("a network that takes more than tensors needs `--data`")
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    rows = [_rows(node) for node in nodes]
    most = max(rows)
    rows = [count if count == most else 0 for count in rows]  # kinds and positions are no tokens
    cache, tokens = cache_of(graph), rows.index(most)
    sized = leaves if cache else _lengthened(nodes, leaves, rows)
    if sized is not leaves and not _runs(graph, sized):  # longer than its table of positions
        sized = leaves
    batches, written = [], not cache and _writes(graph, tokens, rows[tokens])
    for _ in range(-(-(count or _COUNT) // max(1, len(leaves[0])))):
        batch = [
            torch.randint(own, leaf.shape, generator=random, dtype=leaf.dtype) if own else leaf
            for own, leaf in zip(rows, sized, strict=True)
        ]
        if written:
            batch[tokens] = _written(graph, batch, tokens, random)
        batches.append(tuple(batch))
    return Prompts(steps(graph, cache, batches) if cache else batches, written)


def _lengthened(nodes: list[fx.Node], leaves: list[Tensor], rows: list[int]) -> list[Tensor]:
    """The example inputs with `_LENGTH` positions along the second axis, where that is one free size of all inputs
    and each of them holds one value along it or tokens; as they are elsewhere."""
    sizes = {str(node.meta["val"].shape[1]) for node in nodes if node.meta["val"].dim() > 1}
    first = nodes[0].meta["val"]
    flat = all(node.meta["val"].dim() == 2 for node in nodes)
    if len(sizes) != 1 or not flat or not is_symbolic(first.shape[1]):
        return leaves
    size = first.shape[1].node
    upper = size.shape_env.bound_sympy(size.expr).upper
    length = min(_LENGTH, int(upper)) if upper.is_Integer else _LENGTH
    same = all(count or bool((x == x[:, :1]).all()) for count, x in zip(rows, leaves, strict=True))
    if length <= leaves[0].shape[1] or not same:
        return leaves
    return [leaf[:, :1].expand(-1, length).contiguous() for leaf in leaves]


def _runs(graph: Graph, leaves: list[Tensor]) -> bool:
    """True if the network takes inputs of these sizes."""
    try:
        Evaluator(graph.module)(*leaves)
    except (IndexError, RuntimeError):  # what torch says of an index or a size
        return False
    return True


def _writes(graph: Graph, tokens: int, rows: int) -> bool:
    """True if the first output scores the token behind each token, by that and those in front of it alone."""
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    first = next(iter(pytree.tree_leaves(outputs)))
    shape = (*leaves[tokens].shape, rows)
    if not isinstance(first, fx.Node) or len(shape) != 3 or shape_of(first) != shape:
        return False
    other = list(leaves)
    other[tokens] = leaves[tokens].clone()
    other[tokens][:, -1] = (other[tokens][:, -1] + 1) % rows
    run = Evaluator(graph.module)
    before, after = run(*leaves)[0], run(*other)[0]
    return torch.allclose(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-5)


def _written(graph: Graph, leaves: list[Tensor], tokens: int, random: torch.Generator) -> Tensor:
    """Tokens that the network writes behind random first ones: each position draws with one number of its own."""
    run, found = Evaluator(graph.module), leaves[tokens].clone()
    chance = torch.rand(found.shape, generator=random, dtype=torch.float32)[..., None]
    for _ in range(_ROUNDS):
        scores = run(*leaves[:tokens], found, *leaves[tokens + 1 :])[0]
        reached = scores.float().softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(reached, chance * reached[..., -1:]).squeeze(-1)
        found = torch.cat([found[:, :1], drawn[:, :-1].to(found.dtype)], 1)
    return found


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
