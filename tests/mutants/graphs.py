"""Faults in graphs: of parameters, of parameter expressions, and of what is done with the activations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from normfold.ir import Graph
from normfold.ir.expressions import fetch, is_static
from normfold.ir.graph import op_name, shape_of
from normfold.rewrite import Rewriter
from normfold.testing.faults import Change, named, only, reads

aten = torch.ops.aten
Place = Literal["parameters", "expressions", "graph"]

# ops that take the same arguments
EXCHANGED: dict[Any, tuple[Any, ...]] = {
    aten.add.Tensor: (aten.sub.Tensor, aten.mul.Tensor),
    aten.sub.Tensor: (aten.add.Tensor,),
    aten.mul.Tensor: (aten.add.Tensor, aten.div.Tensor),
    aten.div.Tensor: (aten.mul.Tensor,),
    aten.relu.default: (aten.gelu.default, aten.abs.default),
    aten.gelu.default: (aten.silu.default, aten.relu.default),
    aten.silu.default: (aten.relu.default, aten.sigmoid.default),
    aten.hardswish.default: (aten.silu.default,),
    aten.sigmoid.default: (aten.tanh.default, aten.hardsigmoid.default),
    aten.tanh.default: (aten.sigmoid.default,),
    aten.sqrt.default: (aten.rsqrt.default,),
    aten.rsqrt.default: (aten.sqrt.default, aten.reciprocal.default),
    aten.neg.default: (aten.abs.default,),
    aten.maximum.default: (aten.minimum.default,),
    aten.minimum.default: (aten.maximum.default,),
    aten.softmax.int: (aten.log_softmax.int,),
    aten.max_pool2d.default: (aten.avg_pool2d.default,),
}
_AXES = ("dim", "dims", "dim0", "dim1", "normalized_shape")
_SWITCHES = ("is_causal", "count_include_pad", "align_corners", "ceil_mode", "keepdim")
_OPTIONAL = ("bias", "scale", "shift", "weight", "attn_mask")


@dataclass(frozen=True)
class Fault:
    """One change of one node of a graph."""

    place: Place
    node: str
    name: str
    change: Change

    def __str__(self) -> str:
        return f"{self.place}: {self.node}: {self.name}"

    def put_into(self, graph: Graph) -> Graph:
        """A copy of the graph with the fault."""
        wrong = graph.copy()
        (twin,) = [node for node in wrong.nodes if node.name == self.node]
        self.change(wrong, twin)
        wrong.recompile()
        return wrong


def faults(graph: Graph, draw: random.Random) -> list[Fault]:
    """Every fault that there is, in random order; operands that take another's place are drawn."""
    found: list[Fault] = []
    seen: list[fx.Node] = []
    for node in graph.nodes:
        if _is_float(node):
            if node.op == "get_attr":
                found += [
                    Fault("parameters", node.name, *item)
                    for item in _of_parameter(graph, node, draw)
                ]
            elif node.op == "call_function":
                place: Place = "expressions" if is_static(node) else "graph"
                found += [Fault(place, node.name, *item) for item in _of_call(node, seen, draw)]
        seen.append(node)
    draw.shuffle(found)
    return found


def chosen(found: Sequence[Fault], limit: int) -> list[Fault]:
    """So many of them, as evenly over the places as there are."""
    places = {
        place: [item for item in found if item.place == place]
        for place in ("parameters", "expressions", "graph")
    }
    queues = [queue for queue in places.values() if queue]
    made: list[Fault] = []
    while queues and len(made) < limit:
        for queue in queues:
            made.append(queue.pop())
        queues = [queue for queue in queues if queue]
    return made[:limit]


# -- parameters -------------------------------------------------------------------------------------


def _of_parameter(graph: Graph, node: fx.Node, draw: random.Random) -> Iterator[tuple[str, Change]]:
    value = fetch(graph.module, str(node.target))
    if not isinstance(value, Tensor) or not value.numel():
        return
    yield "times 1.5", _with(aten.mul.Tensor, 1.5)
    yield "times 1.001", _with(aten.mul.Tensor, 1.001)
    yield "negative", _with(aten.neg.default)
    yield "zero", _with(aten.mul.Tensor, 0.0)
    yield "plus 0.25", _with(aten.add.Tensor, 0.25)
    for axis, size in enumerate(value.shape):
        if size > 1:
            yield f"flipped along {axis}", _with(aten.flip.default, [axis])
            yield f"rolled along {axis}", _with(aten.roll.default, [1], [axis])
    if value.dim() == 2 and value.shape[0] == value.shape[1]:
        yield "transposed", _with(aten.t.default)
    alike = [
        n for n in graph.nodes if n.op == "get_attr" and n.target != node.target and _alike(n, node)
    ]
    if alike and value.numel() > 1:
        yield "another one", _renamed(str(draw.choice(alike).target))
    index = draw.randrange(value.numel())
    if graph.baked and value.dim():
        yield f"number {index} moved by the deviation", _changed(index, _moved)
        yield f"number {index} of other sign", _changed(index, lambda row, at: row[at].neg_())
        yield f"a row of number {index} zero", _rows(index)


def _with(target: Any, *more: Any) -> Change:
    """What reads a parameter reads a function of it."""

    def change(graph: Graph, node: fx.Node) -> None:
        with graph.module.graph.inserting_after(node):
            made = graph.module.graph.call_function(target, (node, *more))
        made.meta.update({key: value for key, value in node.meta.items() if key == "val"})
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    return change


def _renamed(target: str) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        node.target = target

    return change


def _moved(flat: Tensor, index: int) -> None:
    spread = float(flat.double().std()) if flat.numel() > 1 else 0.0
    flat[index] += spread or float(flat[index].abs()) or 1.0


def _changed(index: int, by: Callable[[Tensor, int], Any]) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        value = fetch(graph.module, str(node.target)).detach().contiguous().clone()
        by(value.view(-1), index)
        _put(graph, str(node.target), value)

    return change


def _rows(index: int) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        value = fetch(graph.module, str(node.target)).detach().clone()
        value[index * len(value) // value.numel()] = 0
        _put(graph, str(node.target), value)

    return change


def _put(graph: Graph, name: str, value: Tensor) -> None:
    """In a copy of a graph, whose modules are its own but whose tensors are not."""
    *path, leaf = name.split(".")
    owner = graph.module.get_submodule(".".join(path))
    delattr(owner, leaf)
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


# -- calls ------------------------------------------------------------------------------------------


def _of_call(
    node: fx.Node, seen: Sequence[fx.Node], draw: random.Random
) -> Iterator[tuple[str, Change]]:
    for target in EXCHANGED.get(node.target, ()):
        yield f"{op_name(node)} is {target}", _targeted(target)
    operands = [n for n in node.all_input_nodes if _is_float(n)]
    for operand in operands:
        if _alike(operand, node):
            yield f"only {operand.name} is left", only(operand.name)
        elif shape_of(operand) == shape_of(node)[::-1] and len(shape_of(node)) == 2 == len(
            node.args
        ):
            yield f"{op_name(node)} left out", only(operand.name)
        others = [
            n
            for n in seen
            if _alike(n, operand) and n not in operands and is_static(n) == is_static(operand)
        ]
        for other in draw.sample(others, min(2, len(others))):
            yield f"reads {other.name} in place of {operand.name}", reads(operand.name, other.name)
        if len(shape_of(operand)) == 2 and len(set(shape_of(operand))) == 1 and is_static(operand):
            yield f"reads {operand.name} transposed", _reads_transposed(operand.name)
    if len(node.args) > 1 and all(isinstance(x, fx.Node) for x in node.args[:2]):
        mine, yours = node.args[:2]
        if mine is not yours and _alike(mine, yours) and op_name(node) not in ("add", "mul"):
            yield "its operands exchanged", _exchanged
    yield from _of_arguments(node, draw)


def _of_arguments(node: fx.Node, draw: random.Random) -> Iterator[tuple[str, Change]]:
    schema = getattr(node.target, "_schema", None)
    for index, (spec, value) in enumerate(
        zip(schema.arguments if schema else (), node.args, strict=False)
    ):
        name = spec.name
        if isinstance(value, float) and abs(value) < 1e30:
            yield f"{name} doubled", _argument(index, 2 * value if value else 0.5)
            if name != "eps" and value:
                yield f"{name} off by a thousandth", _argument(index, 1.001 * value)
        elif isinstance(value, bool) and name in _SWITCHES:
            yield f"{name} is {not value}", _argument(index, not value)
        elif isinstance(value, str) and name == "approximate":
            yield "the other approximation", _argument(index, "none" if value == "tanh" else "tanh")
        elif isinstance(value, fx.Node) and name in _OPTIONAL and index > 1:
            yield f"without {name}", _argument(index, None)
        elif name in _AXES and isinstance(value, int) and (rank := _rank(node)) > 1:
            yield (
                f"{name} {value} is another",
                _argument(index, (value + draw.randrange(1, rank)) % rank),
            )
        elif name in _AXES and isinstance(value, (list, tuple)) and (rank := _rank(node)) > 1:
            if len(value) == rank:
                one, other = draw.sample(range(rank), 2)
                turned = list(value)
                turned[one], turned[other] = turned[other], turned[one]
                yield f"{name} {one} and {other} exchanged", _argument(index, turned)
            elif len(value) == 1 and isinstance(value[0], int):
                yield f"{name} is another", _argument(index, [(value[0] + 1) % rank])
        elif name in ("shifts", "start") and value not in (None, 0):
            opposite: Any = [-x for x in value] if isinstance(value, (list, tuple)) else 0
            yield f"{name} {value} is {opposite}", _argument(index, opposite)


def _rank(node: fx.Node) -> int:
    first = node.args[0]
    first = first[0] if isinstance(first, (list, tuple)) and first else first
    return len(shape_of(first)) if isinstance(first, fx.Node) and "val" in first.meta else 0


def _is_float(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _alike(one: Any, other: Any) -> bool:
    if not _is_float(one) or not _is_float(other):
        return False
    return shape_of(one) == shape_of(other) and one.meta["val"].dtype == other.meta["val"].dtype


def _targeted(target: Any) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        node.target = target
        count = len(target._schema.arguments)
        node.args = node.args[:count] if target is not aten.avg_pool2d.default else node.args[:4]
        node.kwargs = {}

    return change


def _reads_transposed(operand: str) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        old = named(graph, operand)
        with graph.module.graph.inserting_before(node):
            made = graph.module.graph.call_function(aten.t.default, (old,))
        made.meta["val"] = old.meta["val"]
        node.replace_input_with(old, made)

    return change


def _exchanged(graph: Graph, node: fx.Node) -> None:
    node.args = (node.args[1], node.args[0], *node.args[2:])


def _argument(index: int, value: Any) -> Change:
    def change(graph: Graph, node: fx.Node) -> None:
        Rewriter(graph).set_argument(node, index, value)

    return change
