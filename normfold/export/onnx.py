"""ONNX export of a rewritten graph: the raw translation of torch.onnx, tidied, checked, written atomically."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normfold.errors import ExportError, UsageError
from normfold.export import write
from normfold.export.census import Census, census
from normfold.export.cleanup import clean, label
from normfold.export.dialects import choose_opset
from normfold.graph.graph import Graph

if TYPE_CHECKING:
    pass

_NATIVE_ATTENTION = 23  # the opset whose Attention op the exporter uses
_IR_VERSION_LIMIT = 10


@dataclass(frozen=True)
class Exported:
    """A written model: the files, and what is in them.

    ``bytes`` is the size of both files. ``notes`` are the exporter's warnings of substance, each once.
    """

    path: Path
    data_path: Path | None
    opset: int
    dialect: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    census: Census
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every written file."""
        return (self.path,) if self.data_path is None else (self.path, self.data_path)


def export_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    dialect: str = "ort-x86",
    external_data: bool | None = None,
    metadata: dict[str, str] | None = None,
    source_lines: bool = False,
) -> Exported:
    """Write ``graph`` as ONNX.

    Args:
        graph: a graph, normally baked (one that is not has its parameter expressions in the file).
        path: the file to write; its folder must exist.
        opset: ONNX opset, else what the dialect takes for this graph.
        dialect: the runtime that will read the file (see `normfold.export.dialects`).
        external_data: weights in ``<path>.data`` (True) or in the file itself (False); by default in the file up
            to 1 500 000 000 bytes of them.
        metadata: more entries of the model's ``metadata_props``, such as the pipeline text and the source.
        source_lines: keep the user's source line on each node (it names a file of this machine).

    Raises:
        UsageError: an unknown dialect, an opset that cannot be written, a folder that is not there, or one file
            asked for with more weights than it can hold.
        ExportError: the graph cannot be translated, or a dynamic size became fixed. Nothing is written then: an
            older file stays as it was.
    """
    start = time.perf_counter()
    path = Path(path)
    target = _dialect(dialect)
    chosen = choose_opset(graph, target, opset)
    if not path.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(path.parent))
    model, notes = _translate(graph, chosen)
    clean(model)
    _set_names(model, graph)
    label(model, source_lines)
    _set_header(model, graph, metadata or {})
    data_path = path.with_name(path.name + ".data")
    external = _external(model, external_data)
    message = write.Message(model, data_path.name)
    counted = census(message.proto)
    _check_dynamic(graph, counted)
    try:
        if external:
            with write.atomic(data_path, path) as (data, main):
                message.write_data(data)
                message.write_external(main)
        else:
            with write.atomic(path) as (main,):
                message.write_single(main)
            data_path.unlink(missing_ok=True)  # weights of a file that is no more
    except OSError as error:
        raise ExportError(
            "the ONNX file could not be written", where=str(path), found=str(error)
        ) from error
    size = path.stat().st_size + (data_path.stat().st_size if external else 0)
    return Exported(
        path=path,
        data_path=data_path if external else None,
        opset=chosen,
        dialect=target.name,
        input_names=tuple(str(value.name) for value in model.graph.inputs),
        output_names=tuple(str(value.name) for value in model.graph.outputs),
        census=dataclasses.replace(counted, file_bytes=size),
        bytes=size,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )
