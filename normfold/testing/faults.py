"""Faults that a pass may have, put into the graph that it made."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name

aten = torch.ops.aten
Change = Callable[[Graph, fx.Node], None]

# ops that take the same arguments
EXCHANGED: dict[Any, Any] = {
    aten.add.Tensor: aten.sub.Tensor,
    aten.sub.Tensor: aten.add.Tensor,
    aten.mul.Tensor: aten.div.Tensor,
    aten.div.Tensor: aten.mul.Tensor,
    aten.sqrt.default: aten.rsqrt.default,
    aten.rsqrt.default: aten.sqrt.default,
    aten.maximum.default: aten.minimum.default,
    aten.minimum.default: aten.maximum.default,
}
_FACTOR = 1.001


@dataclass(frozen=True)
class Fault:
    """One change of one node."""

    node: str
    name: str
    change: Change

    def __str__(self) -> str:
        return f"{self.node}: {self.name}"

    def put_into(self, graph: Graph) -> Graph:
        """A copy of the graph with the fault."""
        wrong = graph.copy()
        self.change(wrong, named(wrong, self.node))
        wrong.recompile()
        return wrong


def faults(before: Graph, after: Graph, seed: int = 0) -> list[Fault]:
    """Faults in what a pass wrote, in random order; anywhere where it only removed something."""
    known = {_row(node) for node in before.nodes}
    written = [node for node in after.nodes if _row(node) not in known]
    draw = random.Random(seed)
    found = [fault for node in written for fault in _of(after, node)]
    found = found or [fault for node in after.nodes for fault in _of(after, node)]
    draw.shuffle(found)
    return found


def _row(node: fx.Node) -> tuple[str, str, str, str]:
    return (node.name, str(node.target), str(node.args), str(node.kwargs))


def _of(graph: Graph, node: fx.Node) -> Iterator[Fault]:
    if node.op not in ("call_function", "get_attr") or not _is_float(node):
        return
    yield Fault(node.name, f"times {_FACTOR}", _through(aten.mul.Tensor, _FACTOR))
    yield Fault(node.name, "of other sign", _through(aten.neg.default))
    if node.op == "get_attr":
        return
    if node.target in EXCHANGED:
        name = str(EXCHANGED[node.target])
        yield Fault(node.name, f"{op_name(node)} is {name}", _targeted(EXCHANGED[node.target]))
    operands = [source for source in node.all_input_nodes if _is_float(source)]
    for operand in operands:
        if _alike(operand, node):  # a factor or a term is forgotten
            yield Fault(node.name, f"only {operand.name} is left", only(operand.name))
        other = _another(graph, node, operand)
        if other:
            words = f"reads {other} in place of {operand.name}"
            yield Fault(node.name, words, reads(operand.name, other))
    schema = getattr(node.target, "_schema", None)
    specs = schema.arguments if schema is not None else ()
    for index, (spec, value) in enumerate(zip(specs, node.args, strict=False)):
        if index > 1 and isinstance(value, fx.Node) and "Optional" in str(spec.type):
            yield Fault(node.name, f"without {spec.name}", _without(index))


def _another(graph: Graph, node: fx.Node, operand: fx.Node) -> str:
    """A parameter, or an expression, of the same shape in front of a node; nothing where there is none."""
    if not is_static(operand):
        return ""
    for other in graph.nodes:
        if other is node:
            break
        if is_static(other) and _alike(other, operand) and other not in node.all_input_nodes:
            return str(other.name)
    return ""


def _is_float(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _alike(one: fx.Node, other: fx.Node) -> bool:
    if not (_is_float(one) and _is_float(other)):
        return False
    mine, yours = one.meta["val"], other.meta["val"]
    return bool(mine.shape == yours.shape and mine.dtype == yours.dtype)


def named(graph: Graph, name: str) -> fx.Node:
    """The node of a name."""
    return next(node for node in graph.nodes if node.name == name)


def _through(target: Any, *more: Any) -> Change:
    """What reads a node reads a function of it."""

    def change(graph: Graph, node: fx.Node) -> None:
        with graph.module.graph.inserting_after(node):
            made = graph.module.graph.call_function(target, (node, *more))
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    return change


def _targeted(target: Any) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        node.target, node.kwargs = target, {}

    return change


def only(operand: str) -> Change:
    """What reads a node reads one of its operands."""

    def change(graph: Graph, node: fx.Node) -> None:
        node.replace_all_uses_with(named(graph, operand))

    return change


def reads(operand: str, other: str) -> Change:
    """A node reads another one in the place of an operand."""

    def change(graph: Graph, node: fx.Node) -> None:
        node.replace_input_with(named(graph, operand), named(graph, other))

    return change


def _without(index: int) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        node.args = (*node.args[:index], None, *node.args[index + 1 :])

    return change
