"""What steps and targets say while they work, and the report that is folded from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from normfold.report.around import Around
from normfold.report.engine import EngineReport
from normfold.report.layers import LayerReport
from normfold.report.objects import AnyCheck, PassReport, Report, SiteStatus
from normfold.report.quantization import QuantizationReport
from normfold.report.range import Range
from normfold.report.recalibration import RecalibrationReport
from normfold.report.timing import Timing
from normfold.report.training import TrainingReport
from normfold.report.verdict import Artefact


@dataclass(frozen=True)
class Loaded:
    """The network: what it is, where its example inputs are from, its size in bytes and that of its parameters."""

    model: str
    inputs: str
    size: int
    parameters: int


@dataclass(frozen=True)
class Rewritten:
    """Passes ran; ``sites``, their surroundings and ``parameters`` are those of the graph behind them."""

    passes: tuple[PassReport, ...]
    sites: tuple[SiteStatus, ...]
    parameters: int
    around: tuple[Around, ...] = ()


@dataclass(frozen=True)
class Noted:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class Exported:
    """An ONNX file was written: its ops, counted, and its opset."""

    census: dict[str, int]
    opset: int


@dataclass(frozen=True)
class Counted:
    """What a runtime runs in integers, and what not: of the file that was quantised last."""

    integer: dict[str, int]
    floats: dict[str, int]
    census: dict[str, int]
    blocked: dict[str, str]


@dataclass(frozen=True)
class Unmet:
    """A requirement of the policy is not met."""

    text: str


@dataclass(frozen=True)
class Missing:
    """This machine lacks what would be needed for something that was asked for."""

    text: str


@dataclass(frozen=True)
class KeptOriginal:
    """The original's own export takes the place of the result: what was said of the result no longer holds."""

    plain: Report
    note: str


Event = (
    Loaded
    | Rewritten
    | Noted
    | Exported
    | Counted
    | Unmet
    | Missing
    | KeptOriginal
    | Timing
    | Range
    | EngineReport
    | RecalibrationReport
    | TrainingReport
    | QuantizationReport
    | LayerReport
    | Artefact
    | AnyCheck
)
Emit = Callable[[Any], None]


def fold(events: Iterable[Event], report: Report | None = None) -> Report:
    """The report of a run: every event adds what it says, in order."""
    report = report or Report()
    for event in events:
        report = _with(report, event)
    return report


def _with(report: Report, event: Event) -> Report:
    match event:
        case Loaded(model, inputs, size, parameters):
            return replace(
                report,
                model=model,
                inputs=inputs,
                size_before=size,
                parameters_before=parameters,
                parameters_after=parameters,
            )
        case Rewritten(passes, sites, parameters, around):
            return replace(
                report,
                passes=(*report.passes, *passes),
                sites=sites,
                around=around or report.around,
                parameters_after=parameters,
            )
        case Noted(text):
            known = text in report.notes
            return report if known else replace(report, notes=(*report.notes, text))
        case Exported(census, opset):
            first = not report.opset
            return replace(report, census=census, opset=opset) if first else report
        case Counted(integer, floats, census, blocked):
            *made, last = report.quantization
            found = replace(last, integer=integer, floats=floats, census=census, blocked=blocked)
            return replace(report, quantization=(*made, found))
        case Unmet(text):
            return replace(report, unmet=(*report.unmet, text))
        case Missing(text):
            return replace(report, missing=(*report.missing, text))
        case KeptOriginal(plain, note):
            return replace(
                report,
                passes=plain.passes,
                sites=plain.sites,
                around=(),
                parameters_after=plain.parameters_after,
                census=plain.census,
                opset=plain.opset,
                quantization=(),
                ranges=(),
                notes=(note, *report.notes),
                artefacts=(),
                checks=tuple(check for check in report.checks if check.kind == "capture"),
            )
        case Timing():
            return replace(report, timing=event)
        case Range():
            return replace(report, ranges=(*report.ranges, event))
        case EngineReport():
            return replace(report, engine=event)
        case RecalibrationReport():
            return replace(report, recalibration=event)
        case TrainingReport():
            return replace(report, training=event)
        case LayerReport():
            return replace(report, layers=event)
        case QuantizationReport():
            return replace(report, quantization=(*report.quantization, event))
        case Artefact():
            others = tuple(item for item in report.artefacts if item.path != event.path)
            return replace(report, artefacts=(*others, event))
        case _:
            return replace(report, checks=(*report.checks, event))


@dataclass
class Recorder:
    """Takes the events of a run; `report` is what they amount to so far."""

    base: Report = field(default_factory=Report)
    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Take one event."""
        self.events.append(event)

    def report(self, **costs: Any) -> Report:
        """The report so far, with the fields that are known at the end."""
        report = replace(fold(self.events, self.base), **costs)
        if report.ok:
            return report
        unpublished = tuple(replace(item, written=False) for item in report.artefacts)
        return replace(report, artefacts=unpublished)

    @property
    def ok(self) -> bool:
        """False once a verdict has failed or a requirement is not met."""
        return self.report().ok
