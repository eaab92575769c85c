"""Writes that torch does not trace, in words: into `.data`, constants, and memory that is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from normfold.errors import CaptureError
from normfold.ir.fresh import memories
from normfold.ir.graph import op_name
from normfold.ir.logical import owner
from normfold.ir.provenance import source_line

WITHOUT_DATA = "write it without `.data`, or with `.detach()` in its place"
_LIFTED = "lifted_tensor_"  # what torch.export calls a tensor that is no attribute of a module


def require_traceable(program: ExportedProgram) -> None:
    """Refuse `.data` of what is computed, or given: torch.export takes its shape for a constant.

    A trace of that may end the process.

    Raises:
        CaptureError: there is one.
    """
    for node, target in _constants(program).items():
        if isinstance(program.constants.get(target), FakeTensor):
            user = next(iter(node.users), node)
            raise CaptureError(
                "the network takes `.data` of a tensor, which torch.export does not follow",
                where=source_line(user) or None,
                found=f"`{op_name(user)}` of `.data`",
                hint=WITHOUT_DATA,
            )


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
    for node, written in ((y, x) for y in program.graph.nodes for x in _written(y)):
        root = owner(written)
        name = names.get(root.name, "") if root.op == "placeholder" else ""
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


def refused_write(program: ExportedProgram) -> CaptureError | None:
    """Why torch cannot trace a program with writes, where a constant is the reason."""
    constants = _constants(program)
    for node in program.graph.nodes:
        for written in _written(node):
            memory = _memory(written)
            found = next((source for source in constants if _memory(source) == memory), None)
            if found is not None:
                return _of_constant(node, constants[found])
    return None


def _of_constant(node: fx.Node, target: str) -> CaptureError:
    known = not target.startswith(_LIFTED)
    return CaptureError(
        "the network writes into a tensor that is no buffer",
        where=source_line(node) or None,
        found=f"the attribute `{target}`" if known else "a tensor outside of the network's modules",
        hint=f"register it: `self.register_buffer({target.rpartition('.')[2]!r}, ...)`"
        if known
        else "register it as a buffer (`self.register_buffer(...)`), and read it from there",
    )


def _constants(program: ExportedProgram) -> dict[fx.Node, str]:
    return _inputs(program, InputKind.CONSTANT_TENSOR)


def _inputs(program: ExportedProgram, *kinds: InputKind) -> dict[fx.Node, str]:
    """The placeholders of some kinds, and what they stand for."""
    targets = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds
    }
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    return {node: targets[node.name] for node in nodes if node.name in targets}


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that a call writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for place, item in enumerate(node.target._schema.arguments):
        value: Any = node.args[place] if place < len(node.args) else node.kwargs.get(item.name)
        writes = item.alias_info is not None and item.alias_info.is_write
        if writes and isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor):
            yield value


def _memory(node: fx.Node) -> int:
    return int(node.meta["val"].untyped_storage()._cdata)
