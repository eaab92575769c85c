"""Outputs of the original that a result still has: passes may drop, rename and add some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ops.reads import operands
from normfold.ops.table import Kind, kind_of, row_of

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """For each output of a result its name in the original, which has ``names``; empty for one that was added."""

    names: tuple[str, ...]
    sources: tuple[str, ...]

    def left(self, outputs: list[T]) -> list[T]:
        """Of the original's outputs those that the result has, in its order."""
        if self.sources == self.names:
            return outputs
        return [outputs[self.names.index(name)] for name in self.sources if name in self.names]

    def known(self, results: Sequence[list[T]]) -> list[list[T]]:
        """Of a result's outputs, for each case, those that the original has."""
        if set(self.sources) <= set(self.names):
            return list(results)
        return [
            [y for y, name in zip(outputs, self.sources, strict=True) if name in self.names]
            for outputs in results
        ]

    def name(self, place: int) -> str:
        """The name of an output in the original, by its place among those that are compared."""
        kept = [name for name in self.sources if name in self.names]
        return kept[place] if place < len(kept) else str(place)

    @property
    def note(self) -> str:
        """What is not compared, in words."""
        gone = [f"`{name}`" for name in self.names if name not in self.sources]
        added = self.sources.count("")
        texts = [f"without {', '.join(gone)}, which a pass removed"] if gone else []
        texts += [f"{added} outputs that a pass added are not judged"] if added else []
        return "; ".join(texts)


def computed_at(graph: Graph) -> list[float]:
    """For each output the size at which the op that makes its numbers computes; 0 for that of the numbers."""
    leaves = pytree.tree_leaves(next(node for node in graph.nodes if node.op == "output").args)
    return [_computed_at(leaf) for leaf in leaves if _is_tensor(leaf)]


def _computed_at(node: fx.Node) -> float:
    while kind_of(node) in (
        Kind.MOVE,
        Kind.MONOTONE,
    ):  # they choose among numbers that another op made
        (node, *_) = operands(node)
    return row_of(node).computed_at


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)
