"""One network to an engine: capture, preset, precision, strongly typed ONNX, TensorRT's parser and builder.

Nothing is run on a GPU: a row says that an engine was built with the inputs and outputs that were asked for, or
why not. In half precision the lowered network is also run, every op rounded to its type.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import Dim

from normfold.errors import CaptureError, NormfoldError
from normfold.ir import Graph, capture
from normfold.job import Cast, EngineOptions, Job, Source
from normfold.job.presets import preset
from normfold.judge import Verifier
from normfold.progress import silent
from normfold.report import Check
from normfold.report.events import Recorder
from normfold.rewrite import parse, run_pipeline
from normfold.steps.cast import cast
from normfold.steps.work import Work
from normfold.target import target
from normfold.targets.order import Order, drafts
from normfold.targets.tensorrt import Range
from tests.zoo import ln_models, models
from tests.zoo.ln_models import ln_build
from tests.zoo.models import Member, build
from tests.zoo.transformers_configs import ARCHITECTURES
from tests.zoo.trial import captured

TOKENS = Range(1, 7, 32)


@dataclass
class EngineRow:
    """What became of one network. ``ok``: an engine was built, and in half precision within its budget."""

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    preset: str = ""
    parameters: int = 0
    exported: bool = False
    built: bool = False
    nodes: int = 0
    layers: int = 0
    engine_bytes: int = 0
    sites: dict[str, str] = field(default_factory=dict)
    half: float = math.nan
    capture_seconds: float = 0.0
    pass_seconds: float = 0.0
    export_seconds: float = 0.0
    build_seconds: float = 0.0
    total_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def engine_members(precision: str = "fp32") -> list[Member]:
    """The smallest network of each timm family that has norms, and the transformers ones."""
    suffix = "" if precision == "fp32" else f"-{precision}"
    smallest = _families(ln_models.TIMM) | _families(models.TIMM)
    found = [Member(f"timm-trt{suffix}", *item) for item in sorted(smallest.items())]
    return found + [
        Member(f"transformers-trt{suffix}", "transformers", name) for name in ARCHITECTURES
    ]


def engine_trial(member: Member, precision: str = "fp32") -> EngineRow:
    """Run one member; failures are written into the row."""
    row = EngineRow(member.source, member.family, member.name)
    start = time.perf_counter()
    try:
        _run(member, precision, row)
    except Exception as error:  # the zoo goes on; the row says what happened
        parts = [error.what, error.found, error.where] if isinstance(error, NormfoldError) else []
        text = " | ".join(filter(None, parts)) or f"{type(error).__name__}: {error}"
        row.error = " ".join(text.split())[:600]
    row.total_seconds = time.perf_counter() - start
    row.ok = row.built and not row.error
    return row


def _run(member: Member, precision: str, row: EngineRow) -> None:
    graph, ranges = _captured(member, row)
    record = Recorder()
    start = time.perf_counter()
    result, _ = run_pipeline(graph, parse(preset(row.preset)))
    row.pass_seconds = time.perf_counter() - start
    if precision != "fp32":
        work = Work(Job(Source()), record, silent, graph, Verifier(graph), None)
        result = cast(Cast(precision), result, work)  # type: ignore[arg-type]
        report = record.report()
        check = report.checks[-1]
        assert isinstance(check, Check)
        row.half = check.max_rel
        (found,) = report.ranges
        row.sites = {f"{item.site or item.node} {item.op}": item.why for item in found.islands}
        if not check:
            row.error = f"{precision} error {row.half:.2g}, {work.half_budget:g} is allowed"
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            order = Order(
                result,
                Path(folder) / member.name,
                target("trt-rtx"),
                engine=EngineOptions(backend="tensorrt-rtx"),
                ranges=ranges,
                emit=record.emit,
            )
            for _ in drafts("trt", order):  # written, not run
                pass
        finally:
            report = record.report()
            row.exported = any(Path(folder).glob("*.onnx"))
            row.nodes = sum(report.census.values())
            row.export_seconds = time.perf_counter() - start
    assert not report.missing
    assert report.engine is not None
    row.built = True
    row.layers, row.engine_bytes = sum(report.engine.layers.values()), report.engine.size
    row.build_seconds = report.engine.seconds
    row.export_seconds -= row.build_seconds


def _captured(member: Member, row: EngineRow) -> tuple[Graph, dict[str, dict[int, Range]]]:
    """The graph, dynamic in whatever it can be, and the ranges of axes that are no batch."""
    source = member.source.partition("-")[0]
    row.preset = "folded" if member.family in _families(models.TIMM) else "rmsnorm"
    if row.preset == "folded":
        module, x = build(member)
        args: tuple[Tensor, ...] = (x,)
    else:
        module, args = ln_build(replace(member, source=source))
    row.parameters = sum(parameter.numel() for parameter in module.parameters())
    texts = {place for place, value in enumerate(args) if not value.is_floating_point()}
    if texts:
        start = time.perf_counter()
        axes = [
            dict.fromkeys([0, 1] if at in texts else [0], Dim.DYNAMIC) for at in range(len(args))
        ]
        try:
            graph = capture(module, args, dynamic={"tensors": tuple(axes)})
        except CaptureError as error:
            row.note = "fixed length: " + " ".join(str(error).split())[:300]
        else:
            row.capture_seconds = time.perf_counter() - start
            return graph, {graph.input_names[place]: {1: TOKENS} for place in texts}
    graph, row.capture_seconds, note = captured(module, args)
    row.note = " ".join(filter(None, [row.note, note]))
    return graph, {}


def _families(text: str) -> dict[str, str]:
    """The first network of each family in a list of members."""
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        family, name = line.partition("#")[0].split()
        found.setdefault(family, name)
    return found
