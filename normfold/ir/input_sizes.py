"""Free sizes, as what they are of the sizes of the inputs.

A size that is read from an input is known wherever the graph is evaluated, whatever tensors between become.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Mod, PythonMod
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from normfold.ir.inline import NotLocal

_SIZE = torch.ops.aten.sym_size.int
_WHOLE = (FloorDiv, CleanDiv, Mod, PythonMod)


def from_inputs(graph: fx.Graph) -> None:
    """Replace every size that is computed by what it is of the inputs' sizes; what data decide stays.

    Raises:
        NotLocal: a size cannot be written so.
    """
    sources: dict[Any, tuple[fx.Node, int, torch.SymInt]] = {}
    for node, axis, size in _free(graph):
        sources.setdefault(size.node.expr, (node, axis, size))
    calls = [node for node in graph.nodes if node.op in ("call_function", "output")]
    sizes = [node for node in calls if isinstance(node.meta.get("val"), torch.SymInt)]
    anchor = next(node for node in calls if node not in sizes)
    made: dict[Any, fx.Node] = {}
    for node in sizes:
        expression = node.meta["val"].node.expr
        free = expression.free_symbols
        if not (free and free <= sources.keys() and _is_whole(expression)):
            continue
        if expression not in made:
            for symbol in sorted(free, key=str):
                if symbol not in made:
                    made[symbol] = _read(anchor, sources[symbol])
            if expression not in made:
                made[expression] = _computed(anchor, expression, made)
        node.replace_all_uses_with(made[expression])
        graph.erase_node(node)


def _is_whole(expression: Any) -> bool:
    """True for arithmetic of whole numbers; what comes from fractions stays as the network computes it."""
    if expression.is_Function and not isinstance(expression, _WHOLE):
        return False
    return all(map(_is_whole, expression.args))


def _free(graph: fx.Graph) -> Iterator[tuple[fx.Node, int, torch.SymInt]]:
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                yield node, axis, size


def _read(anchor: fx.Node, source: tuple[fx.Node, int, torch.SymInt]) -> fx.Node:
    tensor, axis, size = source
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.call_function(_SIZE, (tensor, axis))
    node.meta["val"] = size
    return node


def _computed(anchor: fx.Node, expression: Any, made: dict[Any, fx.Node]) -> fx.Node:
    tracer = GraphAppendingTracer(anchor.graph)
    proxies = {symbol: fx.Proxy(made[symbol], tracer) for symbol in expression.free_symbols}
    try:
        with anchor.graph.inserting_before(anchor):
            result = sympy_interp(PythonReferenceAnalysis, proxies, expression)
    except Exception as error:  # arithmetic that cannot be written down
        raise NotLocal(str(expression)) from error
    for node in _behind(result.node, [*made.values()]):
        args = fx.map_arg(node.args, lambda source: source.meta["val"])
        node.meta["val"] = node.target(*args)  # type: ignore[operator]
    return result.node  # type: ignore[no-any-return]


def _behind(node: fx.Node, known: Sequence[fx.Node]) -> list[fx.Node]:
    """New nodes, sources first."""
    if node in known or "val" in node.meta:
        return []
    found = [one for source in node.all_input_nodes for one in _behind(source, known)]
    return [*dict.fromkeys(found), node]
