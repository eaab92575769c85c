"""Texts for decoders with their cache as inputs and outputs: what the cache holds is computed, not drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ir.graph import is_symbolic

_PAST, _PRESENT = "past_key_values.", "present."  # as `normfold.load.decoder` names them


def cache_of(graph: Graph) -> dict[int, int]:
    """Places of the inputs that hold keys and values, (batch, heads, past, features), to those of the outputs that
    the next step takes there; empty for a network without such inputs of a free length."""
    outputs = {name: place for place, name in enumerate(graph.output_names)}
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    found = {}
    for place, (name, node) in enumerate(zip(graph.input_names, nodes, strict=True)):
        if not name.startswith(_PAST):
            continue
        value, source = node.meta.get("val"), outputs.get(_PRESENT + name.removeprefix(_PAST))
        known = isinstance(value, Tensor) and value.dim() == 4 and is_symbolic(value.shape[2])
        if source is None or not known:
            return {}
        found[place] = source
    return found


@torch.no_grad()
def steps(
    graph: Graph, cache: Mapping[int, int], batches: Sequence[Sequence[Tensor]]
) -> list[tuple[Tensor, ...]]:
    """Two steps of generation for each batch: a prompt on an empty cache, and new tokens on what it left there.

    Args:
        batches: inputs of one step: whole numbers as (batch, tokens), of which those as long as past and new
            tokens together are masks; the values in the cache are not read.
    """
    run, found = fx.Interpreter(graph.module), list[tuple[Tensor, ...]]()
    for batch in batches:
        length = batch[next(iter(cache))].shape[2]
        first: list[Any] = []
        for place, leaf in enumerate(batch):
            if place in cache:
                first.append(leaf[:, :, :0])
            elif leaf.shape[1] > length:  # a mask
                first.append(leaf[:, :length])
            else:  # as many tokens as the second step finds in the cache
                first.append(leaf.repeat(1, -(-length // leaf.shape[1]))[:, :length])
        made = pytree.tree_leaves(run.run(*first, enable_io_processing=False))
        second = [made[cache[place]] if place in cache else x for place, x in enumerate(batch)]
        found += [tuple(first), tuple(second)]
    return found
