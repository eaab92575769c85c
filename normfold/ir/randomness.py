"""Ops that draw random numbers: two calls of such a network differ, and so does its file."""

from __future__ import annotations

import torch
from torch import fx

from normfold.ir.expressions import is_random
from normfold.ir.graph import Graph, argument, op_name
from normfold.ir.provenance import source_line

_SHOWN = 3
_ON = ("train", "training")
_CHANCE = ("dropout_p", "p", "dropout")


def random_note(graph: Graph) -> list[str]:
    """The random ops of a graph with their lines, in a sentence; nothing where there are none."""
    by_line: dict[str, dict[str, None]] = {}
    for node in graph.nodes:
        if draws(node):
            by_line.setdefault(source_line(node), {})[f"`{op_name(node)}`"] = None
    if not by_line:
        return []
    found = [f"{', '.join(ops)}{f' at {line}' if line else ''}" for line, ops in by_line.items()]
    more = f" and {len(found) - _SHOWN} more lines" if len(found) > _SHOWN else ""
    return [
        f"the network draws random numbers ({'; '.join(found[:_SHOWN])}{more}): two calls of it on one input "
        "differ, so no file of it can be found equivalent; give the numbers as an input, or switch this off"
    ]


def draws(node: fx.Node) -> bool:
    """True if a node gives other numbers at every call: torch says so of its op, and it is not switched off."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not node.users:
        return False
    if not is_random(op):
        return False
    switched_off = any(argument(node, name) is False for name in _ON)
    never = any(argument(node, name) in (0, 0.0) for name in _CHANCE)
    return not (switched_off or never)
