"""Parameter expressions: nodes that depend on parameters, buffers and constants only.

A pass writes its algebra as such nodes; `evaluate` gives their value in float64, `bake` turns them into
constants. They live in front of the first node that depends on an input, so that any consumer may use them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from normfold.ir.evaluation import Domain, Float64
from normfold.ir.facts import Fact

_STATIC = "normfold static"  # among a node's attributes: asked for ten times as often as any fact


@dataclass(frozen=True)
class Made(Fact):
    """A pass wrote this parameter expression; the others are the network's own."""

    kind_name: ClassVar[str] = "made"
    of_numbers: ClassVar[bool] = False


def fetch(module: torch.nn.Module, target: str) -> Any:
    """The attribute that a ``get_attr`` node names, through dotted paths."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def is_static(node: Any) -> bool:
    """True if ``node`` is a tensor-valued parameter expression (memoised)."""
    if not isinstance(node, fx.Node):
        return False
    waiting = [] if _STATIC in node.__dict__ else [node]
    while waiting:  # no recursion: graphs are thousands of ops deep
        current = waiting[-1]
        unknown = [source for source in current.all_input_nodes if _STATIC not in source.__dict__]
        waiting += unknown
        if not unknown:
            current.__dict__[_STATIC] = _is_static(current)
            waiting.pop()
    known: bool = node.__dict__[_STATIC]
    return known


def _is_static(node: fx.Node) -> bool:
    """The mark of a node whose inputs have theirs."""
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or "val" not in node.meta:
        return False
    if gives_other_numbers(node.target):
        return False
    inputs = node.all_input_nodes
    if not inputs:  # arange, full, ...: constant unless a size depends on the input
        return True
    return all(is_static(source) for source in inputs)


def gives_other_numbers(op: Any) -> bool:
    """True if an op may give other numbers at the next call: it is random, or leaves its memory as it was."""
    if not isinstance(op, torch._ops.OpOverload):
        return False
    return is_random(op) or "empty" in str(op._schema.name)


def is_random(op: torch._ops.OpOverload) -> bool:
    """True if torch says that an op draws random numbers."""
    return torch.Tag.nondeterministic_seeded in op.tags


def mark_static(graph: fx.Graph) -> None:
    """Recompute every node's static mark, front to back."""
    for node in graph.nodes:
        node.__dict__.pop(_STATIC, None)
        is_static(node)


def hoist(graph: fx.Graph) -> None:
    """Move every parameter expression before the first node that depends on an input."""
    mark_static(graph)
    nodes = list(graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    static = [node for node in nodes if is_static(node)]
    rest = [node for node in nodes if node.op != "placeholder" and not is_static(node)]
    anchor = rest[0]
    for node in (*placeholders, *static):
        anchor.prepend(node)


def evaluate(
    module: torch.nn.Module,
    node: fx.Node,
    cache: dict[fx.Node, Any] | None = None,
    domain: Domain | None = None,
) -> Any:
    """Value of a parameter expression, by default in float64 (integers and booleans keep their dtype).

    Intermediate results are freed unless ``cache`` is given, which then keeps every value.
    """
    values: dict[fx.Node, Any] = cache if cache is not None else {}
    domain = domain or Float64()
    with torch.no_grad(), domain.active():
        for step in order(node, values):
            if step.op == "get_attr":
                target = str(step.target)
                values[step] = domain.parameter(target, fetch(module, target).detach())
            else:
                values[step] = domain.call(step, values)
    return values[node]


def order(node: fx.Node, known: Container[fx.Node]) -> list[fx.Node]:
    """``node`` and everything that it needs and that is not in ``known``, sources first."""
    found: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack = [(node, False)]
    while stack:
        current, expanded = stack.pop()
        if expanded:
            found.append(current)
        elif current not in seen and current not in known:
            seen.add(current)
            stack.append((current, True))
            stack.extend((source, False) for source in current.all_input_nodes)
    return found


def deduplicate(graph: fx.Graph) -> int:
    """Merge equal parameter expressions (same op, same arguments); returns how many were merged."""
    seen: dict[Any, fx.Node] = {}
    merged = 0
    for node in list(graph.nodes):
        if node.op not in ("get_attr", "call_function") or not is_static(node):
            continue
        key = _key(node)
        if key in seen and not isinstance(node.meta.get("val"), (tuple, list)):
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
            merged += 1
        else:
            seen[key] = node
    return merged


def _key(node: fx.Node) -> str:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: f"%{source.name}")
    return f"{node.op}|{node.target}|{args!r}|{sorted(kwargs.items())!r}"


def roots(graph: fx.Graph) -> Iterable[fx.Node]:
    """Parameter expressions that something outside the expressions uses: what the baker must compute."""
    for node in graph.nodes:
        if is_static(node) and any(not is_static(user) for user in node.users):
            yield node


def small_value(module: torch.nn.Module, node: fx.Node, limit: int = 1 << 20) -> Tensor:
    """Value of a small vector expression, for legality checks that need signs or zeros."""
    shape = node.meta["val"].shape
    if shape.numel() > limit:
        raise ValueError(
            f"`{node.name}` has {shape.numel()} elements, more than a legality check may read"
        )
    value: Tensor = evaluate(module, node)
    return value


def made_of(*nodes: fx.Node) -> set[fx.Node]:
    """Some nodes, and everything that they are computed from."""
    seen, stack = set(nodes), list(nodes)
    while stack:
        fresh = set(stack.pop().all_input_nodes) - seen
        seen |= fresh
        stack += fresh
    return seen


def sharers(weight: fx.Node) -> set[fx.Node]:
    """Ops on activations that read the tensor behind a weight (itself, or an expression of its size)."""
    size = weight.meta["val"].numel()
    above = made_of(weight)  # up to the tensor
    stack = [node for node in above if node.op == "get_attr" and node.meta["val"].numel() == size]
    found: set[fx.Node] = set()
    known = set(stack)
    while stack:  # and down again
        for user in stack.pop().users:
            if not is_static(user):
                found.add(user)
            elif user not in known:
                known.add(user)
                stack.append(user)
    return found


def late(graph: fx.Graph) -> fx.Graph:
    """The same graph, each parameter expression just before its first use: few values are alive at once."""
    found, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if not is_static(node):
            for step in order(node, copies):
                copies[step] = found.node_copy(step, copies.__getitem__)
    return found
