"""inspect and plan: what is in a network and what would happen to it, without changing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.api import run
from normfold.graph import Graph
from normfold.graph.graph import op_name
from normfold.graph.ops import Kind, body, kind_of, operands
from normfold.graph.provenance import module_path
from normfold.report import Report, SiteStatus
from normfold.rewrite.presets import preset
from normfold.sites import norm_nodes

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
    positions = {node: _position(node) for node in norm_nodes(graph)}
    _, report = run(graph, "canonicalize,fold-affine", verify="off")
    order = iter(positions)
    found = []
    for status in report.sites:
        if status.kind == "constant":
            continue
        node = next(order, None) if status.kind != "weight-standardisation" else None
        found.append(_info(status, node, positions, magnitudes))
    return found


def plan(graph: Graph, pipeline: str | None = None) -> Report:
    """What a pipeline would do: its report without baking, verifying or writing anything."""
    text = pipeline if pipeline is not None else preset("folded")
    kept = ",".join(part for part in _split(text) if part.split("{")[0].strip() != "bake")
    _, report = run(graph, kept, verify="off")
    return report


def _split(text: str) -> Sequence[str]:
    from normfold.rewrite import parse

    return [str(item) for item in parse(text)]


def _info(
    status: SiteStatus,
    node: fx.Node | None,
    positions: dict[fx.Node, str],
    magnitudes: dict[str, float],
) -> NormInfo:
    if status.state == "gone":
        foldable, why = "yes", ""
    elif status.state == "kept" and not status.code:
        foldable, why = "affine", "statistics are computed at run time"
    else:
        foldable, why = status.code or "no", status.detail
    position = positions.get(node, "on a weight") if node is not None else "on a weight"
    risk = _risk(status.kind, magnitudes.get(node.name)) if node is not None else "none"
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
        if body(user) is not user or kind_of(user) is Kind.MOVE:
            stack.extend(user.users)
        else:
            found.append(user)
    return found


def _named(node: fx.Node) -> str:
    path = module_path(node)
    return f"{op_name(node)} {path}".strip() if node.op == "call_function" else node.op


def _magnitudes(graph: Graph) -> dict[str, float]:
    """Largest magnitude that each norm reads on the example inputs."""
    wanted = {node.args[0]: node.name for node in norm_nodes(graph)}
    found: dict[str, float] = {}

    class Probe(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted and isinstance(value, Tensor):
                found[wanted[n]] = float(value.abs().max())
            return value

    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    with torch.no_grad():
        Probe(graph.module).run(*leaves, enable_io_processing=False)
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
