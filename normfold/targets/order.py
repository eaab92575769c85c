"""What a writer is given, and what it gives: files that are not yet judged."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from normfold.errors import EnvironmentMissing, ExportError
from normfold.ir import Graph
from normfold.job import EngineOptions
from normfold.progress import Listener, silent
from normfold.target import Target
from normfold.targets.runtime import NoKernel

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Runs = Iterator[tuple[str, Run]]


@dataclass(frozen=True)
class Order:
    """A network to write for a target.

    Attributes:
        graph: baked, in the types and on the grids that the file has.
        stem: the path without suffix.
        opset: None for the target's own.
        ranges: sizes of dynamic axes that an engine is built for, by input and axis.
        metadata: entries of ONNX files.
        precision: the type that weights and activations were lowered to, in words.
        normalisation: what inputs in [0, 1] are normalised by.
        emit: takes events of the report.
        captured: the network as captured; None where it was not kept.
        source: the file or folder that it is from, if it is from one.
        folder: where the files will be.
    """

    graph: Graph
    stem: Path
    target: Target
    opset: int | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    ranges: Mapping[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    precision: str = "as captured"
    normalisation: dict[str, Any] | None = None
    emit: Callable[[Any], None] = lambda event: None
    say: Listener = silent
    captured: Graph | None = None
    source: Path | None = None
    folder: Path = Path()

    def path(self, suffix: str) -> Path:
        """A file of this order."""
        return self.stem.with_name(f"{self.stem.name}{suffix}")


@dataclass(frozen=True)
class Draft:
    """A file that was written, and how it is run here.

    Attributes:
        files: companions that belong to it.
        runtime: what runs it here, by name.
        stands_for: the runtime that it is for, where another one stands in.
        runs: yields each way in which the file is judged; raises `EnvironmentMissing` where it cannot be run.
        within: the folder of its own that the file is in, if it has one.
    """

    path: Path
    runtime: str
    runs: Callable[[], Runs]
    files: tuple[Path, ...] = ()
    stands_for: str = ""
    within: str = ""

    @property
    def name(self) -> str:
        """Of the file, inside the folder of the job's files."""
        return f"{self.within}/{self.path.name}" if self.within else self.path.name

    @property
    def size(self) -> int:
        """Bytes of the file and its weights."""
        weights = [file for file in self.files if file.suffix in (".data", ".bin")]
        return sum(file.stat().st_size for file in (self.path, *weights))


def drafts(kind: str, order: Order) -> Iterator[Draft]:
    """Write one format: yields every file as soon as it is there, and goes on when it has been judged.

    Raises:
        UsageError, ExportError: what cannot be written; nothing of it is left.
    """
    module, _, name = WRITERS[kind].partition(":")
    yield from getattr(importlib.import_module(module), name)(order)


# file format -> module:function(order)
WRITERS = {
    "onnx": "normfold.targets.files:write_onnx",
    "module": "normfold.targets.module:write_module",
    "openvino": "normfold.targets.files:write_openvino",
    "pt2": "normfold.targets.files:write_pt2",
    "trt": "normfold.targets.tensorrt.write:write_engine",
}


def runs_of(target: Target, path: Path) -> Runs:
    """The ways in which a file is run here, by the row of its target.

    Raises:
        EnvironmentMissing: this machine has not what runs it.
        ExportError: the runtime that the file is for is here, and cannot load it.
    """
    if why := target.cannot_run():
        raise EnvironmentMissing(why)
    try:
        yield from target.runner()(path)
    except NoKernel as error:
        if target.stands_in:
            raise
        raise ExportError(
            error.what, where=path.name, found=error.found, hint=error.hint
        ) from error


def sha256(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
