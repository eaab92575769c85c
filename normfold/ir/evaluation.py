"""One interpreter for graphs, over any numbers: a domain says what parameters, inputs and calls mean in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

# Called with every node and its value; what it returns, unless that is None, takes the value's place.
Watch = Callable[[fx.Node, Any], Any]

_WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


class Domain:
    """The numbers of the graph itself: tensors in the types that it has."""

    def parameter(self, target: str, value: Any) -> Any:
        """A parameter, buffer or constant, by its dotted path."""
        return value

    def input(self, node: fx.Node, value: Any) -> Any:
        """An input of the graph."""
        return value

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The result of a call, of which ``values`` has the operands."""
        return self.run(node, *fx.map_arg((node.args, node.kwargs), values.__getitem__))

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call on operands of this domain."""
        assert callable(node.target)
        return node.target(*args, **kwargs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Global settings while something is evaluated."""
        yield


class Evaluator(fx.Interpreter):
    """Evaluates a GraphModule over a domain; values are freed after their last use.

    Args:
        module: the graph, and its parameters.
        domain: the numbers; by default torch's own, as the graph has them.
        watch: sees every value as it is made, and may put another in its place.
        graph: the nodes to evaluate, where they are not those of ``module``.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        domain: Domain | None = None,
        watch: Watch | None = None,
        graph: fx.Graph | None = None,
    ) -> None:
        super().__init__(module, graph=graph)
        self.domain = domain or Domain()
        self.watch = watch

    @torch.no_grad()
    def __call__(self, *leaves: Any) -> list[Any]:
        """Flat outputs for flat inputs, without gradients."""
        return pytree.tree_leaves(self.evaluate(*leaves))

    def evaluate(self, *leaves: Any, known: dict[fx.Node, Any] | None = None) -> Any:
        """What the graph returns for flat inputs; nodes with ``known`` values are not evaluated."""
        with self.domain.active():
            return self.run(*leaves, initial_env=known, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        match n.op:
            case "call_function":
                value = self.domain.call(n, self.env)
            case "get_attr":
                value = self.domain.parameter(str(n.target), self.fetch_attr(str(n.target)))
            case "placeholder":
                value = self.domain.input(n, super().run_node(n))
            case _:
                return super().run_node(n)
        seen = self.watch(n, value) if self.watch is not None else None
        return value if seen is None else seen


def widen(value: Any) -> Any:
    """Floating tensors and dtypes to float64, complex ones to complex128, the rest as it is."""
    if isinstance(value, torch.dtype):
        if value.is_floating_point and value.itemsize > 1:  # 8-bit floats are steps of a grid
            return torch.float64
        return _WIDER.get(value, value)
    if isinstance(value, Tensor):
        return value.to(widen(value.dtype))
    return value


class Float64(Domain):
    """Everything in float64: parameters are upcast one at a time."""

    def parameter(self, target: str, value: Any) -> Any:
        return widen(value)

    def input(self, node: fx.Node, value: Any) -> Any:
        return widen(value)

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(widen, (args, kwargs))
        target: Any = node.target
        if target is torch.ops.aten.view.default:  # float64 kernels may lay out results otherwise
            target = torch.ops.aten.reshape.default
        return target(*args, **kwargs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Factories without a dtype make float64."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
