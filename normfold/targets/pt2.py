"""The rewritten graph as a ``.pt2`` program, which ``torch.export.load`` reads without normfold.

Programs are functional (the dialect ``ATEN``), as Core ML Tools and ExecuTorch want them. Ops stay whole, for two
readers. Partitioners of ExecuTorch choose themselves what stays whole, and normfold knows attention and Hardswish
by their ops: of core ATen alone, the ONNX file of a small ViT has 114 nodes in place of 61. RMS norms are written
as primitives: Core ML Tools had no translation of the op for long, and the one that it has scales eps by the
largest input (apple/coremltools#2592, #2821).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import ExportError, UsageError
from normfold.files import atomic
from normfold.ir.graph import Graph
from normfold.targets.program import exported_program

_EXPANDED = (torch.ops.aten.rms_norm.default, torch.ops.aten._fused_rms_norm.default)


def export_pt2(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """Write ``graph`` as an exported program.

    normfold's own ops and RMS norms are expanded into ATen ops. The older file stays until the new one is whole.

    Raises:
        UsageError: the folder to write to does not exist.
        ExportError: torch.export refused the graph or could not save it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(path.parent))
    program = exported_program(graph, retrace=True)
    known = torch.export.default_decompositions()
    try:
        program = program.run_decompositions({op: known[op] for op in _EXPANDED})
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


def runs(path: str | os.PathLike[str]) -> Iterator[tuple[str, Callable[..., list[Tensor]]]]:
    """A program, loaded again from its file.

    Raises:
        ExportError: torch.export cannot load it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
        module = program.module()
    except Exception as error:  # a damaged archive has no error type of its own
        raise ExportError(
            "the program cannot be loaded again",
            where=str(path),
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
        ) from error
    tree = program.call_spec.in_spec

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = iter(inputs)
        example = pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
        leaves = [next(given) for _ in pytree.tree_leaves(example)]
        args, kwargs = pytree.tree_unflatten(leaves, tree)
        found = pytree.tree_leaves(module(*args, **kwargs))
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    yield "pt2", run
