"""Sizes, types and layouts in place of numbers: the fake values that every node of a captured graph has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from normfold.ir.evaluation import Domain
from normfold.ir.expressions import fetch


class Shapes(Domain):
    """Fake tensors of one mode, in which sizes that differ at run time are symbols.

    An evaluation takes no inputs: those of the graph are what the capture knows of them.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode

    @classmethod
    def of(cls, *nodes: fx.Node) -> Shapes:
        """Those of a captured graph, by any of its nodes that has a tensor."""
        return cls(next(_modes(nodes)))

    def parameter(self, target: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self.mode.from_tensor(value, static_shapes=True)

    def input(self, node: fx.Node, value: Any) -> Any:
        return node.meta["val"]

    @contextmanager
    def active(self) -> Iterator[None]:
        """No tensor is made in memory. Free sizes stay symbols in ops that are written in C++ (`pad`), too."""
        with enable_python_dispatcher(), self.mode, torch.no_grad():
            yield

    def infer(self, node: fx.Node) -> None:
        """Set the value of a call by those of its operands."""
        with self.active():
            operands = {source: source.meta["val"] for source in node.all_input_nodes}
            node.meta["val"] = self.call(node, operands)

    def complete(self, module: fx.GraphModule) -> None:
        """Set the values of parameters and calls that have none, from front to back."""
        for node in module.graph.nodes:
            if node.op == "get_attr" and "val" not in node.meta:
                target = str(node.target)
                value = fetch(module, target)
                if isinstance(value, Tensor):  # not a graph within the graph
                    node.meta["val"] = self.parameter(target, value)
            elif node.op == "call_function" and "val" not in node.meta:
                self.infer(node)

    def retype(self, node: fx.Node, turn: Callable[[torch.dtype], torch.dtype]) -> None:
        """Set the types of a node's value alone: symbols for sizes that data decide stay those of its readers."""
        with self.active():
            node.meta["val"] = pytree.tree_map_only(
                Tensor, lambda leaf: leaf.to(turn(leaf.dtype)), node.meta["val"]
            )


def _modes(nodes: Iterable[fx.Node]) -> Iterator[FakeTensorMode]:
    for node in nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(leaf, FakeTensor):
                yield leaf.fake_mode
    raise AssertionError("a captured graph has fake values")
