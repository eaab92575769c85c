"""Names that torch.fx can paste into source text, for parameters whose own names are no identifiers.

torch.fx writes Python text in which the name of every parameter stands, and compiles it: a quote in a submodule's
name ends a string there, and what follows runs. A name may also be an attribute that a GraphModule has for itself
(a submodule called `meta`). So parameters are renamed between torch.export, which takes any name, and the
GraphModule.
"""

from __future__ import annotations

import copy
import keyword
import re
from collections.abc import Iterable
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from normfold.errors import CaptureError

_PLAIN = re.compile(r"[A-Za-z0-9_]+")


def with_plain_names(program: ExportedProgram) -> tuple[ExportedProgram, dict[str, str]]:
    """A program with plain names of parameters, buffers and constants, and their own names by these.

    A program without names to mend is returned itself; of another, tensors and nodes are shared.

    Raises:
        CaptureError: a name with control characters, or an input that is not called by an identifier.
    """
    for name in _inputs(program):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise CaptureError(
                "the name of an input is not an identifier",
                found=repr(name),
                hint="rename the argument, or the key, in the network",
            )
    stored = {
        str(spec.target) for spec in program.graph_signature.input_specs if spec.target is not None
    }
    new = _renamed(stored | {*program.state_dict, *program.constants})
    if not new:
        return program, {}
    signature = copy.deepcopy(program.graph_signature)
    specs: list[Any] = [*signature.input_specs, *signature.output_specs]
    for spec in specs:
        if spec.target is not None:
            spec.target = new.get(str(spec.target), spec.target)
    renamed = ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=signature,
        state_dict={new.get(name, name): value for name, value in program.state_dict.items()},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={new.get(name, name): value for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )
    return renamed, {plain: own for own, plain in new.items()}


def require_printable(names: Iterable[str]) -> None:
    """Names go to the terminal, into files and reports: refuse control characters in them.

    Raises:
        CaptureError: with the name.
    """
    for name in names:
        if not name.isprintable():
            raise CaptureError(
                "a submodule or parameter has a name with control characters",
                found=repr(name)[:200],
                hint="rename it: names are printed, and written into files",
            )


def _inputs(program: ExportedProgram) -> list[str]:
    """Names that become parameters of `forward`: keywords, and those that the program says."""
    spec = program.call_spec.in_spec
    found: list[Any] = []
    if spec is not None and len(spec.children()) == 2:
        found += spec.child(1).context or ()
    for entry in program.module_call_graph:
        signature = entry.signature
        if signature is not None:
            found += signature.forward_arg_names or ()
            if len(signature.in_spec.children()) == 2:
                found += signature.in_spec.child(1).context or ()
    return [str(name) for name in found]


def _renamed(names: Iterable[str]) -> dict[str, str]:
    taken = set(names)
    new: dict[str, str] = {}
    for name in sorted(taken):
        plain = ".".join(_plain(atom, depth) for depth, atom in enumerate(name.split(".")))
        if plain == name:
            continue
        unique, number = plain, 2
        while unique in taken:
            unique, number = f"{plain}_{number}", number + 1
        taken.add(unique)
        new[name] = unique
    return new


def _plain(atom: str, depth: int) -> str:
    """The atom itself, or one that no language and no module gives a meaning."""
    if _PLAIN.fullmatch(atom) and not keyword.iskeyword(atom):
        owner: Any = nn.Module if depth else fx.GraphModule
        if not (hasattr(owner, atom) or atom in _INSTANCE):
            return atom
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', atom)}_"


# Attributes that modules have once they are made; a submodule of such a name is not found.
_INSTANCE = {*vars(nn.Module()), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
