"""`normfold init`: the table of a model for normfold.toml, with requirements that hold today."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normfold.inspection import capture_source, plan
from normfold.ir import Graph
from normfold.job import Job, Source, all_options
from normfold.job.presets import PRESETS
from normfold.progress import Listener, Progress, silent
from normfold.report import Report
from normfold.steps.prepare import name_of

HEAD = """\
# What `normfold check --config {name}` converts and judges. A table for each model; its keys are options of
# `normfold convert` (or of its `command`). `--update` writes the lock that later runs are compared with.
"""
_AFTER = """
# What must hold, or the exit code is 1; it does today.
require = [
{met}
    # Of the file that is written:
    # "LayerNormalization==0",
    # "size<=25.0",  # MB
    # "time<=1.05",  # of the original's own export in onnxruntime; it is timed for that
]
# max-error = 0.01         # for approximate passes
# allow-unproved = true    # what this machine cannot judge (an engine without its GPU) is green, too
"""
_LEFT = ("left", "kept")


def table(given: Mapping[str, Any], folder: Path, say: Listener = silent) -> tuple[str, str]:
    """The name of a model, and its table as TOML.

    Without ``to`` the preset is that which folds most, and ``rmsnorm`` where that converts a LayerNorm.

    Args:
        given: options of a job, with ``model``.
        folder: of the configuration, which paths in it are relative to.

    Raises:
        LoadError, CaptureError, UsageError: as of `normfold.capture`.
    """
    say(Progress("loading and capturing"))
    options = {key: value for key, value in given.items() if key != "to"}
    graph = capture_source(Source.of(options))
    to = given.get("to")
    if to is None or to in PRESETS:
        to, report = _chosen(graph, to)
    else:
        report = plan(graph)
    known = {**options, **({} if to == "folded" else {"to": to})}
    for key in ("model", *(item.keyword for item in all_options() if item.path)):
        if key in known:
            known[key] = _seen_from(folder, known[key])
    name = name_of(given["model"]).replace(".", "-").strip("-_") or "model"
    met = "\n".join(f'    "{text}",' for text in requirements(report))
    job = Job.of(known).to_toml()
    return name, f"[models.{name}]\n{job}{_AFTER.format(met=met)}"


def _seen_from(folder: Path, value: Any) -> Any:
    """A value that names what is there, as a path from a folder; another value as it is."""
    if isinstance(value, (list, tuple)):
        return [_seen_from(folder, item) for item in value]
    if isinstance(value, (str, Path)) and Path(value).exists():
        return Path(os.path.relpath(value, folder)).as_posix()
    return value


def _chosen(graph: Graph, to: str | None) -> tuple[str, Report]:
    if to is not None:
        return to, plan(graph, to=to)
    report = plan(graph, to="rmsnorm")
    if any(item.state == "converted" for item in report.sites):
        return "rmsnorm", report
    return "folded", plan(graph)


def requirements(report: Report) -> list[str]:
    """What a plan says will be so: sites that passes rewrite, and norms that are left, by kind."""
    counts = {
        item.name: len(item.applied)
        for item in report.passes
        if item.name in ("fold-affine", "center-stream", "compress-stream") and item.applied
    }
    kinds = sorted({item.kind for item in report.sites if item.kind != "constant"})
    left = {kind: sum(x.kind == kind and x.state in _LEFT for x in report.sites) for kind in kinds}
    return [
        *(f"{name}>={number}" for name, number in counts.items()),
        *(f"{kind}{'<=' if number else '=='}{number}" for kind, number in left.items()),
    ]
