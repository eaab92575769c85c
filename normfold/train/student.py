"""A graph as a module to train: what `replace-layernorm` put in becomes the trainable norm that it stands for.

The module and the graph share their tensors, so the graph computes in eval mode what the module has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.ir import Graph, facts
from normfold.ir.graph import shape_of
from normfold.ir.sites import trainable_path
from normfold.nn import Blended, OfflineNorm, PRepBN


def own_tensors(graph: Graph) -> Graph:
    """A copy of ``graph`` with parameters of its own, which require gradients; ties stay ties."""
    graph = graph.copy()
    graph.original = None
    copies: dict[int, Tensor] = {}
    for owner in graph.module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, value in table.items():
                if value is not None:
                    table[name] = copies.setdefault(id(value), _clone(value))  # type: ignore[assignment]
    return graph


def _clone(value: Tensor) -> Tensor:
    copy = value.detach().clone()
    trained = isinstance(value, nn.Parameter) and value.is_floating_point()
    return nn.Parameter(copy) if trained else copy


def streams(graph: Graph) -> list[str]:
    """Names of the nodes whose values a student should reproduce: what the replaced norms read, once each.

    In a pre-norm network these are the states of the residual stream. Only tensors with one row per sample.
    """
    (rows,) = {shape_of(node)[:1] for node in _placeholders(graph)[:1]}
    found = [
        node.args[0]
        for node in graph.nodes
        if trainable_path(node) in graph.trainable and node.op == "call_function"
    ]
    names = [
        node.name
        for node in found
        if isinstance(node, fx.Node) and node.op != "placeholder" and shape_of(node)[:1] == rows
    ]
    return list(dict.fromkeys(names))


def as_module(graph: Graph, taps: Sequence[str] = (), *, blended: bool = False) -> fx.GraphModule:
    """The graph as a module from flat inputs to a list: its flat outputs, then the values of ``taps``.

    ``blended`` puts the LayerNorm beside each norm that has none of its own, for a schedule to lead away from.
    """
    twin = graph.copy().module
    nodes = {node.name: node for node in twin.graph.nodes}
    for node in list(twin.graph.nodes):
        path = trainable_path(node)
        norm = graph.trainable.get(path) if path is not None else None
        if path is None or norm is None:
            continue
        if blended and isinstance(norm, OfflineNorm) and not isinstance(norm, PRepBN):
            assert norm.replaced is not None
            norm, path = Blended(norm, *norm.replaced), f"{path}_blended"
        twin.add_submodule(path, norm)
        with twin.graph.inserting_before(node):
            call = twin.graph.call_module(path, (node.args[0],))
        call.meta.update(node.meta)
        facts.carry(node, call)
        node.replace_all_uses_with(call)
        twin.graph.erase_node(node)
    output = next(node for node in reversed(twin.graph.nodes) if node.op == "output")
    outputs: list[fx.Node] = []
    fx.map_arg(output.args[0], lambda node: outputs.append(node))
    output.args = ([*outputs, *(nodes[name] for name in taps)],)
    twin.graph.set_codegen(fx.graph.CodeGen())
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin


def outputs_of(graph: Graph) -> int:
    """How many tensors the graph returns."""
    output = next(node for node in graph.module.graph.nodes if node.op == "output")
    found: list[fx.Node] = []
    fx.map_arg(output.args[0], lambda node: found.append(node))
    return len(found)


def take_back(graph: Graph, module: nn.Module) -> None:
    """Make ``graph`` refer to the tensors of a module that `as_module` made of it (after a move, say)."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    for path, norm in graph.trainable.items():  # one that is blended has another path in there
        parts = (*norm.named_parameters(), *norm.named_buffers())
        tensors.update({f"{path}.{name}": value for name, value in parts})
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            *folders, leaf = str(node.target).split(".")
            owner = graph.module.get_submodule(".".join(folders))
            value = tensors[str(node.target)]
            table: dict[str, Any] = (
                owner._parameters if leaf in owner._parameters else owner._buffers
            )
            table[leaf] = value


def _placeholders(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def is_float(value: object) -> bool:
    """True for a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and torch.is_floating_point(value)


class Eval(nn.Module):
    """A changed network in eval mode, its norms as modules: what the verdict compares with."""

    def __init__(self, student: Graph) -> None:
        super().__init__()
        self.module = as_module(student).eval()

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        outputs: list[Tensor] = self.module(*pytree.tree_leaves((args, kwargs)))
        return outputs
