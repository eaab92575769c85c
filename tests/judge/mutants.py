"""Faults in rewritten graphs, of the kinds that a wrong rewrite makes: each gives one more graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.graph import argument_index, op_name, shape_of
from normfold.rewrite import Rewriter

aten = torch.ops.aten
Fault = Callable[[Graph, fx.Node], None]

_TURNED = {"add": aten.sub.Tensor, "sub": aten.add.Tensor, "mul": aten.div.Tensor}
_OPTIONAL = {
    "linear": ("bias",),
    "conv2d": ("bias",),
    "normfold::channel_affine": ("scale", "shift"),
}


def mutants(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Every fault that there is in a graph, with a name; shapes stay what they are."""
    for node in graph.nodes:
        for name, fault in _faults(node):
            wrong = graph.copy()
            (twin,) = [other for other in wrong.nodes if other.name == node.name]
            fault(wrong, twin)
            wrong.recompile()
            yield f"{node.name}: {name}", wrong


def _faults(node: fx.Node) -> Iterator[tuple[str, Fault]]:
    if node.op == "get_attr":
        yield from _swaps(node)
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return
    name = op_name(node)
    if not node.meta["val"].is_floating_point():
        return
    for index, operand in enumerate(node.args):
        if isinstance(operand, fx.Node) and _alike(operand, node) and index < 2:
            yield f"only operand {index} is left", _only(index)
        if isinstance(operand, float) and operand not in (0.0, 1.0):
            yield f"argument {index} doubled", _argument(index, 2 * operand)
    if name in _TURNED and all(isinstance(side, fx.Node) for side in node.args[:2]):
        yield "the inverse of it", _turned(_TURNED[name])
    if name == "neg":
        yield "without its sign", _only(0)
    for part in _OPTIONAL.get(name, ()):
        index = argument_index(node, part)
        if len(node.args) > index and node.args[index] is not None:
            yield f"without its {part}", _argument(index, None)
    if name == "mean" and len(shape_of(node)) > 1 and node.args[2:] == (True,):
        yield "a mean over all", _over_all


def _alike(one: fx.Node, other: fx.Node) -> bool:
    mine, yours = one.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(yours, Tensor):
        return False
    return shape_of(one) == shape_of(other) and mine.dtype == yours.dtype


def _swaps(node: fx.Node) -> Iterator[tuple[str, Fault]]:
    """Another parameter of the same shape."""
    others = [other for other in node.graph.nodes if other.op == "get_attr" and other is not node]
    alike = [other for other in others if _alike(other, node) and other.meta["val"].dim()]
    for other in alike[:2]:
        yield f"is {other.target}", _renamed(str(other.target))


def _renamed(target: str) -> Fault:
    def fault(graph: Graph, node: fx.Node) -> None:
        node.target = target

    return fault


def _only(index: int) -> Fault:
    def fault(graph: Graph, node: fx.Node) -> None:
        operand = node.args[index]
        assert isinstance(operand, fx.Node)
        node.replace_all_uses_with(operand)

    return fault


def _argument(index: int, value: Any) -> Fault:
    def fault(graph: Graph, node: fx.Node) -> None:
        Rewriter(graph).set_argument(node, index, value)

    return fault


def _turned(target: Any) -> Fault:
    def fault(graph: Graph, node: fx.Node) -> None:
        node.target = target

    return fault


def _over_all(graph: Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.args = (source, list(range(len(shape_of(source)))), True)
    with graph.module.graph.inserting_after(node):
        wide = graph.module.graph.call_function(aten.expand.default, (node, list(shape_of(node))))
    wide.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
