"""Several batches at once through a graph whose batch is fixed: each op runs on one batch after the other, so that
a value of all of them can be looked at, and changed, before the next op reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ir.evaluation import Domain
from normfold.ir.graph import is_symbolic


@dataclass(frozen=True)
class Parts:
    """One value of each batch."""

    values: tuple[Any, ...]


class Batches(Domain):
    """The numbers of another domain, once for each batch; parameters are one for all."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def parameter(self, target: str, value: Any) -> Any:
        return self.domain.parameter(target, value)

    def input(self, node: fx.Node, value: Any) -> Any:
        return Parts(tuple(self.domain.input(node, part) for part in value))

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, tree = pytree.tree_flatten((args, kwargs))
        counts = {len(leaf.values) for leaf in leaves if isinstance(leaf, Parts)}
        if not counts:
            return self.domain.run(node, args, kwargs)
        (count,) = counts
        return Parts(
            tuple(
                self.domain.run(
                    node,
                    *pytree.tree_unflatten(
                        [x.values[at] if isinstance(x, Parts) else x for x in leaves], tree
                    ),
                )
                for at in range(count)
            )
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        with self.domain.active():
            yield


def joined(value: Any, dim: int = 0) -> Any:
    """The tensors of all batches as one; anything else as it is."""
    if not isinstance(value, Parts):
        return value
    tensors = all(isinstance(part, Tensor) and part.dim() for part in value.values)
    return torch.cat(value.values, dim) if tensors else value


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or that of each batch, changed."""
    if isinstance(value, Parts):
        return Parts(tuple(map(change, value.values)))
    return change(value)


def fixed_batch(graph: Graph) -> int | None:
    """How many rows the graph takes at a time, where that is fixed."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in nodes]
    shapes = [value.shape for value in values if isinstance(value, Tensor) and value.dim()]
    if not shapes or any(is_symbolic(shape[0]) for shape in shapes):
        return None
    return int(shapes[0][0])


def split(leaves: Sequence[Any], size: int | None) -> list[tuple[Any, ...]]:
    """Rows in batches of ``size``, the last of which must be whole; in one where it is None."""
    if size is None:
        return [tuple(leaves)]
    count = max(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    return [
        tuple(leaf[at : at + size] if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        for at in range(0, count, size)
    ]
