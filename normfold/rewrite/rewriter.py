"""The only code that changes a graph. It records every edit, and keeps shapes and provenance right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from normfold.domains.shapes import Shapes
from normfold.ir import facts
from normfold.ir.expressions import Made, is_static
from normfold.ir.graph import Graph
from normfold.ir.provenance import copy_provenance
from normfold.rewrite.outputs import Outputs


class Rewriter:
    """Edits one graph. ``edits`` lists what was done, in words, in order; ``outputs`` drops, renames and adds."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.edits: list[str] = []
        self.outputs = Outputs(graph)
        self._anchor: fx.Node | None = None
        self._constants = 0

    def expression(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a parameter expression, usable by every node of the graph that depends on an input."""
        with self.graph.module.graph.inserting_before(self._first_dynamic()):
            node = self.graph.module.graph.call_function(target, args, kwargs)
        self.infer(node)
        facts.put(node, Made())
        return node

    def constant(self, value: Tensor, name: str) -> fx.Node:
        """Register a tensor as a buffer and return the node that reads it."""
        self._constants += 1
        path = f"normfold_{name}_{self._constants}"
        while hasattr(self.graph.module, path):
            self._constants += 1
            path = f"normfold_{name}_{self._constants}"
        return self.attribute(path, value)

    def attribute(self, path: str, value: Tensor) -> fx.Node:
        """Register a parameter or buffer under a dotted path and return the node that reads it."""
        *folders, leaf = path.split(".")
        owner: nn.Module = self.graph.module
        for name in folders:
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value)
        with self.graph.module.graph.inserting_before(self._first_dynamic()):
            node = self.graph.module.graph.get_attr(path)
        node.meta["val"] = self._shapes.parameter(path, value)
        return node

    def insert_after(self, anchor: fx.Node, target: Callable[..., Any], *args: Any) -> fx.Node:
        """Add an op on activations behind ``anchor``, with the anchor's provenance."""
        graph = self.graph.module.graph
        behind_inputs = anchor.op == "placeholder"  # and behind all parameter expressions
        place = (
            graph.inserting_before(self._first_dynamic())
            if behind_inputs
            else graph.inserting_after(anchor)
        )
        with place:
            node = graph.call_function(target, args)
        return self._finish(node, anchor)

    def insert_before(
        self, anchor: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> fx.Node:
        """Add an op on activations in front of ``anchor``, with the anchor's provenance."""
        with self.graph.module.graph.inserting_before(anchor):
            node = self.graph.module.graph.call_function(target, args, kwargs)
        return self._finish(node, anchor)

    def set_argument(self, node: fx.Node, position: int, value: Any, same: bool = False) -> None:
        """Set a positional argument, filling skipped optional ones with their defaults.

        What is known of the node's numbers is dropped, unless they are the ``same`` as before up to rounding.
        """
        args = list(node.args)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        while len(args) <= position:
            spec = schema[len(args)]
            args.append(node.kwargs.get(spec.name, spec.default_value))
        args[position] = value
        kept = {spec.name for spec in schema[len(args) :]}
        node.kwargs = {name: arg for name, arg in node.kwargs.items() if name in kept}
        node.args = tuple(args)
        if not same:
            self.changed(node)

    def set_call(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], same: bool = False
    ) -> None:
        """Make the node another call of the same shape and type, as `set_argument` does."""
        node.target, node.args, node.kwargs = target, args, {}
        if not same:
            self.changed(node)

    def changed(self, *nodes: fx.Node) -> None:
        """Drop what is known of the numbers of nodes: they become others."""
        for node in nodes:
            facts.drop(node)

    def changed_behind(self, node: fx.Node) -> None:
        """Drop what is known of the numbers of a node, and of everything that is computed from it."""
        seen, stack = {node}, [node]
        while stack:
            fresh = set(stack.pop().users) - seen
            seen |= fresh
            stack += fresh
        self.changed(*seen)

    def replace_input(self, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Make ``user`` read ``new`` wherever it read ``old``. What ``user`` computes stays what it was."""
        user.replace_input_with(old, new)

    def replace(
        self, old: fx.Node, new: fx.Node, keep: tuple[fx.Node, ...] = (), same: bool = True
    ) -> None:
        """Make every user of ``old`` (but those in ``keep``) read ``new``, and drop ``old`` if unused.

        What is known of the numbers of ``old`` is then known of ``new``, unless they are not the ``same``.
        """
        if same:
            facts.put(new, *(fact for fact in facts.facts_of(old) if fact.of_numbers))
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in keep)
        if not old.users:
            self.erase(old)

    def erase(self, node: fx.Node) -> None:
        """Remove an unused node and whatever fed only it."""
        inputs = node.all_input_nodes
        if node is self._anchor:
            self._anchor = None
        self.graph.module.graph.erase_node(node)
        for source in inputs:
            gone = getattr(source, "_erased", False)  # another input may have fed on it alone
            if not gone and not source.users and source.op in ("call_function", "get_attr"):
                self.erase(source)

    def record(self, text: str) -> None:
        """Note an edit in words."""
        self.edits.append(text)

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """Parameter expression in ``dtype`` (itself if it already is)."""
        if node.meta["val"].dtype == dtype:
            return node
        return self.expression(torch.ops.aten._to_copy.default, node, dtype=dtype)

    def _first_dynamic(self) -> fx.Node:
        if self._anchor is None:
            self._anchor = next(
                node
                for node in self.graph.nodes
                if node.op != "placeholder" and not is_static(node)
            )
        return self._anchor

    def _finish(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        self.infer(node)
        copy_provenance(origin, node)
        self._anchor = None
        return node

    def infer(self, node: fx.Node) -> None:
        """Find the shape of a node again, after an edit of its arguments."""
        self._shapes.infer(node)

    @cached_property
    def _shapes(self) -> Shapes:
        return Shapes.of(*self.graph.nodes)
