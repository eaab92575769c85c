"""inspect and plan: what is in a network and what would happen to it, without changing anything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.api import run
from normfold.data.opening import axes_of, capture_source, load_source
from normfold.errors import CaptureError
from normfold.faults import bisect
from normfold.ir import Graph
from normfold.ir.capture import dynamic_axes, quiet
from normfold.ir.evaluation import Evaluator
from normfold.ir.fresh import fresh
from normfold.ir.graph import op_name
from normfold.ir.provenance import module_path
from normfold.ir.refusal import DOCTOR, drafted
from normfold.ir.text import graph_text
from normfold.job import Source
from normfold.job.presets import preset
from normfold.judge import Culprit, Verifier
from normfold.judge.fixed import at_its_batch
from normfold.judge.inputs import own_samples
from normfold.load.capture import capture_loaded, read_axes
from normfold.load.types import Loaded
from normfold.ops.reads import operands, producer
from normfold.ops.table import Kind, kind_of
from normfold.passes.canonicalize import Canonicalize
from normfold.progress import Listener
from normfold.report import Report, SiteStatus
from normfold.report.sites import norm_nodes
from normfold.rewrite import Effect, Pass, parse
from normfold.rewrite.registry import find
from normfold.spaces.spaces import Space, spaces
from normfold.spaces.symmetry import words
from normfold.targets.environment import environment
from normfold.targets.untrusted import require_own_data

__all__ = [
    "NormInfo",
    "SpaceInfo",
    "capture_source",
    "environment",
    "find_culprit",
    "graph_text_after",
    "inspect",
    "list_spaces",
    "obstacles",
    "plan",
    "require_pipeline",
]

HALF_MAX = 65504.0


@dataclass(frozen=True)
class NormInfo:
    """One norm as `normfold inspect` shows it.

    ``position`` names what it reads and who reads it; ``foldable`` is ``yes``, ``affine`` (its gain and bias
    fold, its statistics are computed at run time) or the reason code; ``half_risk`` says whether float16
    overflows on the example inputs, with the measured magnitude.
    """

    path: str
    kind: str
    position: str
    foldable: str
    why: str
    half_risk: str
    line: str


def inspect(graph: Graph) -> list[NormInfo]:
    """Every norm of a captured graph, with position, foldability and float16 risk."""
    magnitudes = _magnitudes(graph)
    nodes = {match.path: match.node for match in Canonicalize().match(graph) if match.sites}
    places = {path: index for index, path in enumerate(nodes)}
    _, report = run(graph, "canonicalize,fold-affine", verify="off")
    norms = [status for status in report.sites if status.kind != "constant"]
    norms.sort(key=lambda status: places.get(status.site, len(places)))
    return [_info(status, nodes.get(status.site), magnitudes) for status in norms]


def require_pipeline(pipeline: str | None, to: str = "folded") -> None:
    """Refuse a wrong pipeline text or preset before a model is loaded.

    Raises:
        UsageError: as `parse` and `preset`.
    """
    parse(pipeline if pipeline is not None else preset(to))


def plan(graph: Graph, pipeline: str | None = None, to: str = "folded") -> Report:
    """What a pipeline (or the preset ``to``) would do: its report, without baking, verifying or writing."""
    passes = parse(pipeline if pipeline is not None else preset(to))
    kept = [item for item in passes if Effect.BAKES not in item.effects]
    _, report = run(graph, kept, verify="off")
    return report


def _info(
    status: SiteStatus,
    node: fx.Node | None,
    magnitudes: dict[str, float],
) -> NormInfo:
    if status.state == "gone":
        foldable, why = "yes", ""
    elif status.state == "kept" and not status.code:
        foldable, why = "affine", "statistics are computed at run time"
    else:
        foldable, why = status.code or "no", status.detail
    if node is None or status.kind == "weight-standardisation":
        position, risk = "on a weight", "none"
    else:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        position, risk = _position(node), _risk(status.kind, magnitudes.get(source.name))
    return NormInfo(status.site, status.kind, position, foldable, why, risk, status.line)


def _position(node: fx.Node) -> str:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    while kind_of(source) is Kind.MOVE and len(operands(source)) == 1:
        source = operands(source)[0]
    readers: list[str] = []
    for user in _readers(node):
        readers.append(_named(user))
    names = ", ".join(dict.fromkeys(readers))
    return f"{_named(source)} -> {names or 'nothing'}"


def _readers(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    stack = list(node.users)
    while stack:
        user = stack.pop(0)
        if producer(user) is not user or kind_of(user) is Kind.MOVE:
            stack.extend(user.users)
        else:
            found.append(user)
    return found


def _named(node: fx.Node) -> str:
    path = module_path(node)
    return f"{op_name(node)} {path}".strip() if node.op == "call_function" else node.op


def _magnitudes(graph: Graph) -> dict[str, float]:
    """Largest magnitude of each tensor that a norm reads, by node name, on the example inputs."""
    wanted = {node.args[0] for node in norm_nodes(graph)}
    found: dict[str, float] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted and isinstance(value, Tensor):
            found[node.name] = float(value.abs().max())

    Evaluator(graph.module, watch=watch)(*pytree.tree_leaves((graph.args, graph.kwargs)))
    return found


def _risk(kind: str, magnitude: float | None) -> str:
    if magnitude is None or not math.isfinite(magnitude):
        return "unknown"
    squared = kind in ("layer-norm", "rms-norm", "group-norm", "instance-norm")
    reach = magnitude * magnitude if squared else magnitude
    what = f"squares reach {reach:.2g}" if squared else f"inputs reach {reach:.2g}"
    if reach > HALF_MAX:
        return f"overflow: {what}"
    return f"near: {what}" if reach > HALF_MAX / 16 else "none"


def graph_text_after(graph: Graph, pipeline: str | None) -> str:
    """Canonical text of a graph, after a pipeline if one is given."""
    if pipeline is not None:
        graph, _ = run(graph, pipeline, verify="off")
    return graph_text(graph)


@dataclass(frozen=True)
class SpaceInfo:
    """One feature space as `normfold inspect --spaces` shows it; writers and readers are ops with paths.

    ``held_by`` are those of them that leave least.
    """

    width: int
    tensors: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    symmetry: str
    held_by: tuple[str, ...]


def list_spaces(graph: Graph, pipeline: str | None = None) -> list[SpaceInfo]:
    """Every feature space that a linear op writes, with what its readers and writers leave free.

    Args:
        pipeline: of the passes behind which to look; by default those behind which passes ask for spaces.
    """
    graph, _ = run(graph, pipeline or "canonicalize,fold-affine", verify="off")
    return [
        SpaceInfo(
            space.width,
            len(space.members),
            tuple(dict.fromkeys(map(_named, space.writers))),
            tuple(dict.fromkeys(map(_named, space.readers))),
            words(space.symmetry),
            _held_by(space),
        )
        for space in spaces(graph)
    ]


def _held_by(space: Space) -> tuple[str, ...]:
    found, readers = (
        tuple(dict.fromkeys(map(_named, ends))) for ends in (space.held_by, space.readers)
    )
    return ("every reader",) if len(found) > 1 and found == readers else found


def find_culprit(
    source: Source,
    pipeline: str | None,
    to: str,
    progress: Listener,
    *,
    tries: Sequence[str] = (),
    **options: Any,
) -> Culprit | None:
    """`bisect` for a pipeline text or a preset, and the file of its result; ``options`` are its own."""
    if options.get("file") is not None and Path(options["file"]).is_file():
        require_own_data(Path(options["file"]))
        source = at_its_batch(source, Path(options["file"]))
    graph = capture_source(source)
    return bisect(
        graph,
        pipeline if pipeline is not None else preset(to),
        verifier=Verifier(graph, source.seed, own_samples(graph, source), tries),
        progress=progress,
        export=True,
        **options,
    )


def pass_class(name: str) -> type[Pass]:
    """The class of a pass, imported; also of one that another package offers.

    Raises:
        UsageError: no such pass, or a plug-in that cannot be imported or is not a pass.
    """
    return find(name)


def obstacles(source: Source) -> list[str]:
    """What stands in the way of a capture, which is tried as a job does it: one text for each obstacle.

    Where torch.export fails, its draft mode lists every obstacle at once, besides the error itself.
    """
    loaded = load_source(source)
    try:
        capture_loaded(loaded, source.batch, axes_of(source))
    except CaptureError as error:
        hint = re.sub(f"(, or )?{re.escape(DOCTOR)}", "", error.hint or "").removeprefix("; ")
        said = CaptureError(error.what, where=error.where, found=error.found, hint=hint or None)
        return [str(said), *_drafted(loaded, source)]
    return []


def _drafted(loaded: Loaded, source: Source) -> list[str]:
    from torch.export import draft_export

    example = (loaded.args, loaded.kwargs)
    axes, batch = read_axes(axes_of(source)), source.batch == "dynamic"
    try:
        with quiet(), torch.no_grad():
            shapes = dynamic_axes(loaded.module, *example, batch, axes) if batch or axes else None
            program = draft_export(fresh(loaded.module), *example, dynamic_shapes=shapes)
    except Exception:  # the error of the capture says the same
        return []
    report = getattr(program, "_report", None)
    return drafted(report) if report is not None else []
