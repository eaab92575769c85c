"""ONNX export of a rewritten graph: the raw translation of torch.onnx, tidied, checked, written atomically."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfold.errors import ExportError, NormfoldError, UsageError
from normfold.files import atomic
from normfold.ir.graph import Graph, is_symbolic, op_name
from normfold.ir.provenance import module_path, source_line
from normfold.ir.recurrent import free_length
from normfold.target import Target
from normfold.target import target as find_target
from normfold.targets import images, integer, numbers, stable, tables, write
from normfold.targets.attention import suit_fused, write_attention
from normfold.targets.calls import share_sizes
from normfold.targets.census import Census, census
from normfold.targets.cleanup import Origin, clean, give_shapes, label, name_axes
from normfold.targets.diagonals import write_diagonals
from normfold.targets.integer import narrow_scales, pack
from normfold.targets.opsets import choose_opset
from normfold.targets.plain import (
    write_activations,
    write_batch_norms,
    write_booleans,
    write_casts,
    write_clamps,
    write_global_pools,
    write_rms_norms,
)
from normfold.targets.program import LiftedProgram, exported_program, with_tensors_only
from normfold.targets.registry import kept_registry
from normfold.targets.slices import write_pads, write_slices

if TYPE_CHECKING:
    import onnx_ir as ir

_NATIVE_RMS_NORM = 23
_REGISTRATION = "torch.onnx._internal.exporter._registration"
_IR_VERSIONS = {23: 11}  # the oldest file version that an opset goes with; 10 for older ones


@dataclass(frozen=True)
class Exported:
    """A written model: the files, and what is in them.

    ``bytes`` is the size of both files. ``notes`` are the exporter's warnings of substance, each once.
    ``origins`` tells what a node comes from.
    """

    path: Path
    data_path: Path | None
    opset: int
    target: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    census: Census
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every written file."""
        return (self.path,) if self.data_path is None else (self.path, self.data_path)


def export_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    target: str | Target = "ort-x86",
    external_data: bool | None = None,
    metadata: dict[str, str] | None = None,
    source_lines: bool = False,
) -> Exported:
    """Write ``graph`` as ONNX.

    Args:
        graph: a graph, normally baked (one that is not has its parameter expressions in the file).
        path: the file to write; its folder must exist.
        opset: ONNX opset, else what the target takes for this graph.
        target: the runtime that will read the file (see `normfold.target`).
        external_data: weights in ``<path>.data`` (True) or in the file itself (False); by default in the file up
            to 1 500 000 000 bytes of them.
        metadata: more entries of the model's ``metadata_props``, such as the pipeline text and the source.
        source_lines: keep the user's source line on each node (it names a file of this machine).

    Raises:
        UsageError: an unknown target, an opset that cannot be written, a folder that is not there, or one file
            asked for with more weights than it can hold.
        ExportError: the graph cannot be translated, or a dynamic size became fixed. Nothing is written then: an
            older file stays as it was.
    """
    start = time.perf_counter()
    path = Path(path)
    row = target if isinstance(target, Target) else find_target(target)
    chosen = choose_opset(graph, row, opset)
    if not path.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(path.parent))
    graph = with_tensors_only(graph)
    model, notes = _translate(graph, chosen, row)
    pack(model, native=row.grids is not None and row.grids.packed)
    clean(model)
    narrow_scales(model)
    _set_names(model, graph)
    give_shapes(model, [leaf.meta["val"] for leaf in _results(graph)])
    name_axes(model, _axis_names(model))
    origins = label(model, source_lines)
    _set_header(model, chosen, metadata or {})
    data_path = path.with_name(path.name + ".data")
    external = _external(model, external_data)
    message = write.Message(model, data_path.name)
    counted = census(message.proto)
    if any(node.target in integer.TRANSLATED for node in graph.nodes):
        message.proto.graph.ClearField("value_info")  # it is to be small; readers infer shapes
    _check_dynamic(graph, counted)
    try:
        if external:
            with atomic(data_path, path) as (data, main):
                message.write_data(data)
                message.write_external(main)
        else:
            with atomic(path) as (main,):
                message.write_single(main)
            data_path.unlink(missing_ok=True)  # weights of a file that is gone
    except OSError as error:
        raise ExportError(
            "the ONNX file could not be written", where=str(path), found=str(error)
        ) from error
    size = path.stat().st_size + (data_path.stat().st_size if external else 0)
    return Exported(
        path=path,
        data_path=data_path if external else None,
        opset=chosen,
        target=row.name,
        input_names=tuple(str(value.name) for value in model.graph.inputs),
        output_names=tuple(str(value.name) for value in model.graph.outputs),
        census=dataclasses.replace(counted, file_bytes=size),
        bytes=size,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
        origins=origins,
    )


class _Recorder(logging.Handler):
    """Keeps the exporter's log lines of substance."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _translate(graph: Graph, opset: int, target: Target) -> tuple[ir.Model, list[str]]:
    """The raw ONNX model and what the exporter said that matters."""
    graph, attention = graph.copy(), opset >= target.attention_opset
    if target.packs:
        tables.write_packed(graph)
    write_pads(graph.module)
    write_attention(graph.module, only_unfused=attention)
    if attention:
        suit_fused(graph.module)
    graph.recompile()
    program = exported_program(graph)
    try:
        return _run_exporter(program, opset)
    except Exception as error:
        if type(program) is ExportedProgram:  # it was traced: there is nothing else to try
            raise _refused(error, graph) from error
    try:
        return _run_exporter(exported_program(graph, retrace=True), opset)
    except NormfoldError:
        raise
    except Exception as error:
        raise _refused(error, graph) from error


def _write_forms(graph: fx.Graph, opset: int) -> None:
    """Write what the exporter, or the runtime, would do otherwise than the network, in place."""
    images.require_resizes(graph)
    write_global_pools(graph)
    write_batch_norms(graph)
    write_rms_norms(graph, native=opset >= _NATIVE_RMS_NORM)
    write_activations(graph)
    write_clamps(graph)
    write_diagonals(graph)
    write_booleans(graph)
    stable.write_all(graph)
    images.write_group_norms(graph)
    write_slices(graph)
    write_casts(graph)
    share_sizes(graph)


def _run_exporter(program: ExportedProgram, opset: int) -> tuple[ir.Model, list[str]]:
    forms = partial(_write_forms, opset=opset)
    forms(program.graph)
    if isinstance(program, LiftedProgram):
        program.forms = forms
    for node in program.graph.nodes:  # the exporter warns where nodes of passes have none
        node.meta.setdefault("nn_module_stack", {})
    recorder, logger = _Recorder(), logging.getLogger("torch.onnx")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(recorder)
    logging.getLogger(_REGISTRATION).setLevel(logging.ERROR)  # ops of packages that are not here
    try:
        # stdout is for the user's data: torch marks each step there
        with (
            warnings.catch_warnings(record=True) as caught,
            redirect_stdout(io.StringIO()),
            kept_registry(),
            torch.no_grad(),
            free_length(),  # the exporter finds shapes once more
        ):
            warnings.simplefilter("always")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                verbose=False,
                custom_translation_table=integer.translations()
                | tables.translations()
                | numbers.translations()
                | stable.translations()
                | images.translations(),
            )
    finally:
        logger.removeHandler(recorder)
        logger.propagate = propagate
    assert exported is not None
    ours = [w for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    said = [str(w.message).strip().split("\n")[0] for w in ours] + recorder.lines
    return exported.model, list(dict.fromkeys(said))


def _refused(error: Exception, graph: Graph) -> ExportError:
    values = {node.name: node.meta.get("val") for node in graph.nodes}
    complexes = [name for name, x in values.items() if isinstance(x, Tensor) and x.is_complex()]
    if complexes:
        return ExportError(
            "the network computes with complex numbers, which torch.onnx does not translate",
            found=", ".join(f"`{name}`" for name in complexes[:4]),
            hint="write them as pairs of real numbers (a rotation as cosine and sine); "
            "`--export pt2` keeps them as they are",
        )
    blamed = _blamed(error)
    if blamed is not None:
        origins = {source.name for source in blamed.meta.get("from_node", ())}
        own = (node for node in graph.nodes if node.name in origins or node.name == blamed.name)
        return _untranslated(next(own, blamed))
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return ExportError(
        "torch.onnx could not translate the graph",
        found=f"{type(error).__name__}: {lines[0][:500] if lines else ''}",
        hint="an op without an ONNX form: `normfold inspect MODEL --graph` shows where it is",
    )


def _blamed(error: BaseException | None) -> fx.Node | None:
    """The node at which the exporter gave up, which decomposes ops in a copy of its own."""
    found = None
    while error is not None:
        step = error.__traceback__
        while step is not None:
            node = step.tb_frame.f_locals.get("node")
            is_exporter = step.tb_frame.f_code.co_name == "_translate_fx_graph"
            found = node if is_exporter and isinstance(node, fx.Node) else found
            step = step.tb_next
        error = error.__cause__
    return found


def _untranslated(node: fx.Node) -> ExportError:
    sizes = [part for part in node.all_input_nodes if not isinstance(part.meta.get("val"), Tensor)]
    free = bool(sizes) or any(
        is_symbolic(size)
        for part in node.all_input_nodes
        for size in getattr(part.meta.get("val"), "shape", ())
    )
    fixed = " or its sizes fixed (without `--dynamic`, with `--batch static`)" if free else ""
    return ExportError(
        f"torch.onnx has no form in ONNX for `{op_name(node)}`",
        where=source_line(node) or module_path(node) or node.name,
        hint=f"write it with other ops{fixed}; `--export pt2` keeps it as it is",
    )


def _set_names(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs the graph's names; other values of the same name move out of the way."""
    from onnx_ir.passes import common

    taken: set[str] = set()
    names = tuple(
        name
        for name, node in zip(graph.input_names, _placeholders(graph), strict=True)
        if isinstance(node.meta.get("val"), Tensor)  # other inputs are not in the file
    )
    for values, wanted in ((model.graph.inputs, names), (model.graph.outputs, graph.output_names)):
        if len(values) != len(wanted):
            raise ExportError(
                "the exported file has another number of inputs or outputs than the network",
                found=f"{[value.name for value in values]} for {list(wanted)}",
            )
        for value, name in zip(values, wanted, strict=True):
            unique, number = name, 2
            while unique in taken:
                unique, number = f"{name}_{number}", number + 1
            taken.add(unique)
            value.name = unique
    for value in tuple(model.graph.initializers.values()):
        value.name = graph.own_names.get(str(value.name), value.name)
    common.NameFixPass()(model)


def _placeholders(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _results(graph: Graph) -> list[fx.Node]:
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, fx.Node)]


def _axis_names(model: ir.Model) -> dict[str, str]:
    """A name for each symbolic size of the inputs: ``batch`` for the first axis, else ``input_axis``."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            symbol = "" if isinstance(size, int) else str(size.value or "")
            if not symbol.isidentifier() or symbol in names:
                continue
            plain = re.sub(r"\W", "_", str(value.name))
            free = axis == 0 and "batch" not in names.values()
            names[symbol] = "batch" if free else f"{plain}_{axis}"
    return names


def _set_header(model: ir.Model, opset: int, metadata: dict[str, str]) -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        model.producer_version = version("normfold")
    except PackageNotFoundError:  # a bare clone
        model.producer_version = ""
    model.producer_name = "normfold"
    model.ir_version = max(model.ir_version or 0, _IR_VERSIONS.get(opset, 10))
    model.metadata_props.update({"torch": torch.__version__, **metadata})


def _external(model: ir.Model, asked: bool | None) -> bool:
    size = write.weight_bytes(model)
    if asked is None:
        return size > write.SINGLE_FILE_LIMIT
    if not asked and size > write.SINGLE_FILE_LIMIT:
        raise UsageError(
            "the weights do not fit into one file",
            found=f"{size / 1e9:.2f} GB; one file is written up to {write.SINGLE_FILE_LIMIT / 1e9:.2f} GB",
            hint="leave `external_data` out: weights then go into a .data file beside the model",
        )
    return asked


def _check_dynamic(graph: Graph, written: Census) -> None:
    """Every size that is symbolic in the graph must be symbolic in the file."""
    names = (*graph.input_names, *graph.output_names)
    for name, node in zip(names, (*_placeholders(graph), *_results(graph)), strict=True):
        value: Any = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        for axis, size in enumerate(value.shape):
            if is_symbolic(size) and axis not in written.dynamic.get(name, {}):
                raise ExportError(
                    f"axis {axis} of `{name}` is dynamic in the network and fixed in the exported file",
                    found=f"size {size} became fixed",
                    hint="export with a fixed batch (`--batch static`), or report it",
                )
