"""Names that the user gives to inputs and outputs of ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.capture import placeholders
from normfold.job import Export


def named(graph: Graph, export: Export) -> Graph:
    """The graph with the names that files get; its nodes are shared.

    Raises:
        UsageError: another number of names than there are inputs or outputs.
    """
    files = [  # other inputs are not in the file
        isinstance(node.meta.get("val"), Tensor) for node in placeholders(graph)
    ]
    own = [name for name, there in zip(graph.input_names, files, strict=True) if there]
    given = iter(_names("--input-names", export.input_names, own))
    inputs = (
        next(given) if there else name for name, there in zip(graph.input_names, files, strict=True)
    )
    outputs = _names("--output-names", export.output_names, graph.output_names)
    names = tuple(inputs)
    both = set(names) & set(outputs)
    if both and (export.input_names or export.output_names):
        raise UsageError(
            "an input and an output of a file cannot have one name", found=", ".join(sorted(both))
        )
    return replace(graph, input_names=names, output_names=tuple(outputs))


def _names(flag: str, given: Sequence[str], own: Sequence[str]) -> Sequence[str]:
    if given and len(given) != len(own):
        raise UsageError(
            f"`{flag}` gives {len(given)} names for {len(own)}",
            found=", ".join(given),
            hint=f"the network has, in this order: {', '.join(own)}",
        )
    return given or own


def of_files(by_name: Mapping[str, Any], graph: Graph, renamed: Graph) -> dict[str, Any]:
    """What is known of inputs by their own names, by those that files have."""
    new = dict(zip(graph.input_names, renamed.input_names, strict=True))
    return {new.get(name, name): value for name, value in by_name.items()}
