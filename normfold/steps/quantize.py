"""From a float network to one of integers: find out where its tensors lie, put them on grids, say what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.graph import Graph
from normfold.graph.graph import op_name
from normfold.graph.placed import device_of
from normfold.ranges.calibration import Calibrated, Quantization, calibrate
from normfold.ranges.mixed import pipeline
from normfold.ranges.sensitivity import first_float
from normfold.ranges.synthesis import Recipe
from normfold.report import PassReport, Report
from normfold.report.quantization import Confidence, Evidence, MixedReport, QuantizationReport
from normfold.rewrite import parse, run_pipeline
from normfold.steps.formats import choose
from normfold.train.metrics import Comparison

Progress = Callable[[str], None]
Made = tuple[Graph, list[PassReport], QuantizationReport]

__all__ = ["Calibrated", "Integers", "Quantization", "Recipe", "calibrate", "quantise"]

_WEIGHTS = {
    "int8": "quantize-weights",
    "int8-weights": "quantize-weights{block=32},quantize-weights",
    "int4-weights": "quantize-weights{bits=4 block=32 rounding=squant},quantize-weights",
    "int8-dynamic": "quantize-dynamic",
}


def quantise(
    calibrated: Calibrated,
    options: Quantization,
    dialect: str,
    mixed: MixedReport | None = None,
) -> Made:
    """Put weights and activations on the grids that the runtime of a dialect wants.

    Returns:
        The integer network, the passes that made it, and the report.
    """
    start = time.perf_counter()
    text = _pipeline(options, dialect, mixed.bits if mixed is not None else None)
    result, passes = run_pipeline(calibrated.graph, parse(text))
    result.samples = None
    report = QuantizationReport(options.scheme, dialect, max_drop=options.max_drop)
    grids = [node for node in result.nodes if op_name(node) in _GRIDS]
    report.weights = sum(item.rewrites for item in passes if item.name in _STORED)
    report.activations = len(grids)
    covered = [node for node in grids if str(node.args[0]) in calibrated.told]
    share = len(covered) / len(grids) if grids else None
    report.evidence = replace(calibrated.evidence, covered=share)
    answers = (_both(result, calibrated.graph, leaves) for leaves in calibrated.inputs)
    report.drift = compare(answers, calibrated.labels)
    report.mixed = mixed
    if options.scheme == "int8" and options.data is None:
        report.confidence = confidence(report.evidence, report.drift)
    report.warnings = _doubts(report.evidence, report.confidence)
    report.seconds = calibrated.seconds + time.perf_counter() - start
    return result, passes, report


_GRIDS = ("normfold::quantize", "normfold::simulate")
_STORED = ("quantize-weights", "quantize-dynamic")


def _pipeline(options: Quantization, dialect: str, bits: dict[str, int] | None) -> str:
    if bits is not None:
        parts = [pipeline(bits, options.simulate)]
    elif options.weights is not None:
        parts = [options.weights]
    elif options.scheme == "int8" and not options.vnni:
        parts = ["quantize-weights{bits=7}"]
    else:
        parts = [_WEIGHTS[options.scheme]]
    if options.scheme == "int8":
        width = f" bits={options.activation_bits}" if options.activation_bits < 8 else ""
        parts.append(f"quantize-activations{{dialect={dialect}{width}}}")
    if options.correct_bias:
        parts.append("correct-bias")
    return ",".join(part for part in parts if part)


class Integers:
    """A float network that is calibrated once, and written as integers for each runtime that is asked for."""

    def __init__(
        self,
        graph: Graph,
        options: Quantization,
        report: Report,
        normalisation: Any,
        say: Progress,
    ) -> None:
        self.options, self.report, self.say = options, report, say
        self.calibrated = calibrate(graph, options, normalisation=normalisation, progress=say)
        self.mixed: MixedReport | None = None

    def graph(self, dialect: str) -> Graph:
        """The integer network for a dialect; what made it goes into the report."""
        options = self.options
        if options.mixed and self.mixed is None:
            self.mixed = choose(self.calibrated, options, self._judge, self.say)
        self.say("putting weights and activations on grids")
        graph, passes, made = quantise(self.calibrated, options, dialect, self.mixed)
        self.report.passes += passes
        self.report.quantization.append(made)
        return graph

    def _judge(self, bits: dict[str, int]) -> float:
        text = _pipeline(self.options, "ort-x86", bits)
        result, _ = run_pipeline(self.calibrated.graph, parse(text))
        pairs = (_both(result, self.calibrated.graph, x) for x in self.calibrated.inputs)
        made = QuantizationReport(self.options.scheme, "ort-x86")
        made.drift = compare(pairs, self.calibrated.labels)
        return math.inf if made.lost is None else made.lost


def require_executable(formats: Sequence[str], dialect: str, options: Quantization) -> None:
    """Refuse what no runtime executes or no device runs, before any work.

    Raises:
        UsageError: a format without integers, activations of fewer bits than any kernel takes, a scheme that the
            dialect's runtime has no kernels for, or a device that does not exist.
        EnvironmentMissing: a GPU is asked for, and torch sees none.
    """
    device_of(options.device)
    if "pt2" in formats:
        raise UsageError("integers are not written as pt2", hint="`--export onnx` or `trt`")
    if formats and options.activation_bits < 8:
        raise UsageError(
            "activations of fewer than 8 bits are simulated: no runtime executes them",
            hint="leave out `--export`",
        )
    tensorrt = "trt" in formats or dialect.startswith("trt")
    if tensorrt and (options.scheme != "int8" or options.mixed):
        raise UsageError(
            f"`{options.scheme}`{' with formats by layer' if options.mixed else ''} is for onnxruntime",
            found="TensorRT",
            hint="TensorRT takes `int8`",
        )


def write_integers(
    path: Path, integers: Integers, report: Report, opset: int | None, dialect: str
) -> None:
    """Write the integer network as ONNX, and look at what onnxruntime makes of it."""
    from normfold.targets.onnx import export_onnx

    graph = integers.graph(dialect)
    exported = export_onnx(
        graph, path, opset=opset, dialect=dialect, metadata={"source": report.model}
    )
    report.census = dict(exported.census.ops)
    if dialect == "ort-x86":
        look(path, integers.calibrated.inputs, report.quantization[-1])


def look(path: Path, inputs: Sequence[Sequence[Tensor]], made: QuantizationReport) -> None:
    """What onnxruntime runs in integers, and whether its optimisations keep the answers."""
    from normfold.targets.integer_census import integer_census
    from normfold.targets.runtime import RuntimeSession

    counted = integer_census(path)
    made.integer, made.floats = counted.integer, counted.floats
    made.census, made.blocked = counted.ops, counted.blocked
    every, none = RuntimeSession(path, "all"), RuntimeSession(path, "none")
    found = compare(((first_float(every.run(x)), first_float(none.run(x))) for x in inputs), None)
    if found.get("agreement") is not None:
        made.optimised = {name: found[name] for name in ("samples", "agreement", "snr_db")}


def compare(answers: Iterable[tuple[Tensor, Tensor]], labels: Tensor | None) -> dict[str, Any]:
    """Drift of pairs of first outputs, mine from theirs, and the signal-to-noise ratio of mine in dB."""
    compared, signal, noise, at = Comparison(), 0.0, 0.0, 0
    for mine, theirs in answers:
        rows = labels[at : at + len(theirs)] if labels is not None else None
        at += len(theirs)
        compared.add(mine, theirs, rows)
        signal += float(theirs.double().square().sum())
        noise += float((mine.double() - theirs.double()).square().sum())
    ratio = 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))
    return {**compared.drift().to_dict(), "snr_db": ratio}


@torch.no_grad()
def _both(result: Graph, graph: Graph, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mine, theirs = (_first(network, leaves) for network in (result, graph))
    return mine, theirs


def _first(graph: Graph, leaves: Sequence[Tensor]) -> Tensor:
    outputs = fx.Interpreter(graph.module).run(*leaves, enable_io_processing=False)
    return first_float(pytree.tree_leaves(outputs))


def confidence(evidence: Evidence, drift: dict[str, Any]) -> Confidence:
    """What is known without data, put on one scale: 1 at what sound networks show, 0.5 where doubt begins.

    The bounds of the loss are those that told sound from lying statistics on trained networks; the divergence is
    that on the distilled inputs themselves, which flatters, and counts only when it is large.
    """
    parts = {}
    if evidence.loss is not None:
        parts["statistics"] = _falling(evidence.loss, Evidence.SUSPICIOUS)
    if evidence.distance is not None:
        parts["ranges"] = _falling(evidence.distance, 1.5)
    if drift.get("kl") is not None:
        parts["divergence"] = _falling(float(drift["kl"]), 0.1)
    if evidence.covered is not None:
        parts["coverage"] = min(1.0, evidence.covered)
    return Confidence(min(parts.values(), default=0.0), parts)


def _falling(value: float, doubt: float) -> float:
    """1 up to a quarter of ``doubt``, 0.5 at it, 0 from four times it on; even steps of the logarithm between."""
    return min(1.0, max(0.0, 0.5 - math.log(max(value, 1e-12) / doubt, 4) / 2))


def _doubts(evidence: Evidence, trust: Confidence | None) -> list[str]:
    found = []
    if evidence.doubtful:
        found.append(
            f"inputs that fit the statistics of the norms could not be found (loss {evidence.loss:.2f}, sound "
            f"networks come below {Evidence.SUSPICIOUS:g}): the statistics are not those of these weights. "
            "Give `--data`"
        )
    elif trust is not None and trust.score < Confidence.TRUSTED:
        weakest = min(trust.parts, key=trust.parts.__getitem__) if trust.parts else "nothing known"
        found.append(
            f"little is known of this network ({weakest}): judge it on data before deployment"
        )
    worst = sorted(evidence.apart.items(), key=lambda item: abs(math.log(item[1])))[-3:]
    found += [
        f"`{name}`: measured {ratio:.3g} times as wide as its statistics say"
        for name, ratio in worst
    ]
    return found
