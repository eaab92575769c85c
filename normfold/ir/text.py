"""Canonical text of a graph: one line a node, stable names and order, made to be read and diffed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import Graph, is_symbolic
from normfold.ir.provenance import module_path

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "bool",
}


def graph_text(graph: Graph, parameters: bool = True) -> str:
    """The graph as text: ``%relu = relu(%conv) : f32[N,64,56,56]  # layer1.0``.

    Parameters and parameter expressions print as ``$name``, activations as ``%name``, symbolic sizes as
    letters in order of appearance. ``parameters=False`` leaves the ``$`` lines out.
    """
    return "\n".join(node_lines(graph, parameters).values()) + "\n"


def node_lines(graph: Graph, parameters: bool = True) -> dict[str, str]:
    """The lines of `graph_text`, by the name of the node."""
    symbols: dict[str, str] = {}
    lines = {}
    for node in graph.nodes:
        if is_static(node) and not parameters:
            continue
        value = _type(node.meta.get("val"), symbols)
        path = module_path(node)
        line = (
            f"{_name(node)} = {_call(node)}"
            if node.op != "output"
            else f"return {_argument(node.args[0])}"
        )
        line += (f" : {value}" if value else "") + (f"  # {path}" if path else "")
        lines[node.name] = line
    return lines


def _name(node: fx.Node) -> str:
    return ("$" if is_static(node) else "%") + node.name


def _call(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return f"param {node.target}"
    name = (
        str(getattr(node.target, "__name__", node.target))
        if node.op == "call_function"
        else node.op
    )
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        name = str(node.target).removeprefix("aten.").removesuffix(".default")
    arguments = [_argument(argument) for argument in node.args]
    arguments += [f"{key}={_argument(argument)}" for key, argument in node.kwargs.items()]
    return f"{name}({', '.join(arguments)})"


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return _name(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(part) for part in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_argument(part)}" for key, part in value.items()) + "}"
    if isinstance(value, torch.dtype):
        return _DTYPES.get(value, str(value).removeprefix("torch."))
    return repr(value) if isinstance(value, str) else str(value)


def _type(value: Any, symbols: dict[str, str]) -> str:
    if not isinstance(value, torch.Tensor):
        return ""
    sizes = ",".join(_size(size, symbols) for size in value.shape)
    return f"{_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{sizes}]"


def _size(size: Any, symbols: dict[str, str]) -> str:
    if not is_symbolic(size):
        return str(int(size))
    expression = str(size.node.expr)
    for symbol in sorted(map(str, size.node.expr.free_symbols)):
        letter = symbols.setdefault(symbol, "NSTUVW"[len(symbols)] if len(symbols) < 6 else symbol)
        expression = expression.replace(symbol, letter)
    return expression.replace(" ", "")
