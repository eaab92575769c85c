"""Parameters and buffers that share memory, of which torch.export knows nothing."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from normfold.errors import CaptureError
from normfold.ir.fresh import memories
from normfold.ir.provenance import source_line


def require_apart(program: ExportedProgram, own_names: Mapping[str, str]) -> None:
    """Refuse writes into a tensor of the network whose memory another one shares.

    The graph has them as two, so that the other one would not see the write.

    Raises:
        CaptureError: names both tensors, and the line that writes.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {**program.state_dict, **program.constants}
    tensors = {name: state[name] for name in names.values() if isinstance(state.get(name), Tensor)}
    for node, input_name in _writes(program.graph):
        name = names.get(input_name, "")
        memory = set(memories([tensors[name]] if name in tensors else []))
        others = [
            f"`{own_names.get(other, other)}`"
            for other, tensor in tensors.items()
            if other != name and not memory.isdisjoint(memories([tensor]))
        ]
        if others:
            raise CaptureError(
                f"the network writes into `{own_names.get(name, name)}`, which shares its memory with "
                f"{', '.join(others)}",
                where=source_line(node) or None,
                found="torch.export takes them for tensors of their own",
                hint="register copies (`.clone()`) where they are apart; else one, and make the other of it in "
                "`forward`",
            )


def _writes(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
    """Ops that write into an input of the graph, itself or by views of it, and the name of that input."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        for place, spec in enumerate(node.target._schema.arguments):
            if spec.alias_info is None or not spec.alias_info.is_write:
                continue
            written = node.args[place] if place < len(node.args) else node.kwargs.get(spec.name)
            root = owner(written) if isinstance(written, fx.Node) else None
            if root is not None and root.op == "placeholder":
                yield node, root.name


def owner(node: fx.Node) -> fx.Node:
    """The node that made the memory of a tensor, of which the node may be a view."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        target = node.target
        views = isinstance(target, torch._ops.OpOverload) and bool(
            target._schema.arguments and target._schema.arguments[0].alias_info
        )
        if not views and target is not operator.getitem:
            break
        node = node.args[0]
    return node
