"""The rewritten graph as a ``.pt2`` program, which ``torch.export.load`` reads without normfold."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from normfold.errors import ExportError, UsageError
from normfold.graph.graph import Graph
from normfold.targets.program import exported_program
from normfold.targets.write import atomic


def export_pt2(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """Write ``graph`` as an exported program.

    normfold's own ops are expanded into ATen ops first. The older file stays until the new one is complete.

    Raises:
        UsageError: the folder to write to does not exist.
        ExportError: torch.export refused the graph or could not save it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(path.parent))
    program = exported_program(graph, retrace=True)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    if any(getattr(target, "namespace", "") == "normfold" for target in targets):
        program = program.run_decompositions({})
    try:
        with warnings.catch_warnings(), atomic(path) as (file,):
            warnings.simplefilter("ignore")
            torch.export.save(program, file)
    except Exception as error:  # serialisation has no error type of its own
        raise ExportError(
            "the program could not be written as .pt2",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
        ) from error
    return path
