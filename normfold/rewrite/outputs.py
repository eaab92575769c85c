"""Outputs of a graph that a pass drops, renames or adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.errors import PassError
from normfold.ir import Graph

_GONE = object()


@dataclass
class Outputs:
    """The outputs of a graph by name; what they were in the original is kept for the verdict."""

    graph: Graph

    def drop(self, name: str) -> None:
        """Leave an output out.

        Raises:
            PassError: there is no such output, or it is the last one.
        """
        place = self._place(name)
        if len(self.graph.output_names) == 1:
            raise PassError(
                f"`{name}` is the only output", hint="a network without outputs is none"
            )
        leaf = self._tensor_leaves()[place]
        tree = self._structure()
        leaves, spec = pytree.tree_flatten(_without(tree, leaf))
        self._set([self._values()[at] for at in leaves], spec)
        self.graph.output_sources = _cut(self._sources(), place)
        self.graph.output_names = _cut(self.graph.output_names, place)

    def rename(self, name: str, new: str) -> None:
        """Call an output otherwise.

        Raises:
            PassError: there is no such output, or one of the new name.
        """
        place = self._place(name)
        self._require_free(new)
        sources, names = self._sources(), list(self.graph.output_names)
        names[place] = new
        self.graph.output_sources, self.graph.output_names = sources, tuple(names)

    def add(self, name: str, node: fx.Node) -> None:
        """Return the tensor of a node too, as the last output; the verdict has nothing to compare it with.

        Raises:
            PassError: there is an output of this name.
        """
        self._require_free(name)
        values = self._values()
        tree = self._structure()
        if isinstance(tree, dict):
            tree = {**tree, name: len(values)}
        else:
            tree = (*(tree if isinstance(tree, (list, tuple)) else (tree,)), len(values))
        leaves, spec = pytree.tree_flatten(tree)
        values = [*values, node]
        sources = (*self._sources(), "")
        self._set([values[at] for at in leaves], spec)
        self.graph.output_sources = sources
        self.graph.output_names = (*self.graph.output_names, name)

    def _place(self, name: str) -> int:
        if name not in self.graph.output_names:
            known = ", ".join(f"`{item}`" for item in self.graph.output_names)
            raise PassError(f"there is no output `{name}`", found=f"outputs: {known}")
        return self.graph.output_names.index(name)

    def _require_free(self, name: str) -> None:
        if name in self.graph.output_names:
            raise PassError(f"there is an output `{name}` already")

    def _sources(self) -> tuple[str, ...]:
        return self.graph.output_sources or self.graph.output_names

    def _node(self) -> fx.Node:
        found: fx.Node = self.graph.module.graph.output_node()
        return found

    @property
    def _codegen(self) -> Any:
        return self.graph.module.graph._codegen

    def _values(self) -> list[Any]:
        return pytree.tree_leaves(self._node().args[0])

    def _tensor_leaves(self) -> list[int]:
        """Places of the tensors among the leaves, in the order of the names."""
        return [
            at
            for at, value in enumerate(self._values())
            if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)
        ]

    def _structure(self) -> Any:
        """What the network returns, with the place of each leaf in it."""
        return pytree.tree_unflatten(range(len(self._values())), self._codegen.pytree_info.out_spec)

    def _set(self, values: list[Any], spec: pytree.TreeSpec) -> None:
        codegen = self._codegen
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
        self._node().args = (tuple(values),)


def _without(tree: Any, leaf: int) -> Any:
    """A structure of places without one of them; containers that are empty then go too."""
    if isinstance(tree, dict):
        parts = {key: _without(part, leaf) for key, part in tree.items()}
        return {key: part for key, part in parts.items() if part is not _GONE} or _GONE
    if isinstance(tree, (list, tuple)):
        found = [part for part in (_without(part, leaf) for part in tree) if part is not _GONE]
        return (found if isinstance(tree, list) else tuple(found)) or _GONE
    return _GONE if tree == leaf else tree


def _cut(items: tuple[str, ...], place: int) -> tuple[str, ...]:
    return items[:place] + items[place + 1 :]
