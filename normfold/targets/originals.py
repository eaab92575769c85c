"""A file beside the original: run by the original's names, and the original's own export in the same runtime."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import EnvironmentMissing, ExportError
from normfold.ir import Graph
from normfold.target import Target
from normfold.targets.feeds import Fed
from normfold.targets.floats import widened
from normfold.targets.onnx import export_onnx
from normfold.targets.order import Run, runs_of


class OwnExport:
    """Runs of the original's own ONNX file by the kinds of their checks; it is written where one is asked for.

    Args:
        graph: as captured.
        target: whose runtime it is for.
    """

    def __init__(self, graph: Graph, target: Target) -> None:
        self._graph, self._target = graph, target

    @cached_property
    def _runs(self) -> dict[str, Run]:
        network, _ = widened(self._graph, self._target)
        with TemporaryDirectory() as folder:
            try:
                made = export_onnx(network, Path(folder) / "original.onnx", target=self._target)
                return dict(runs_of(self._target, made.path))
            except (ExportError, EnvironmentMissing):  # then nothing excuses the file
                return {}

    def __call__(self, kind: str) -> Run | None:
        return self._runs.get(kind)


def named_runs(target: Target, path: Path, graph: Graph) -> Iterator[tuple[str, Run, str]]:
    """How a file is run with inputs and outputs in the order of a graph, by their names.

    Yields:
        The kind of the check, the run, and a note where names are others: those are taken by their place.

    Raises:
        EnvironmentMissing, ExportError: as `runs_of`.
    """
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    tensors = zip(graph.input_names, leaves, strict=True)
    inputs = [name for name, leaf in tensors if isinstance(leaf, Tensor)]
    for kind, run in runs_of(target, path):
        if isinstance(run, Fed):
            yield kind, *run.in_order(inputs, graph.output_names)
        else:
            yield kind, run, ""
