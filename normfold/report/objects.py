"""What a run did, as data: one object behind the text, the JSON and every later rendering."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from normfold.report.around import Around
from normfold.report.certificate import Certificate
from normfold.report.engine import EngineReport
from normfold.report.layers import LayerReport
from normfold.report.quantization import QuantizationReport
from normfold.report.range import Range
from normfold.report.recalibration import RecalibrationReport
from normfold.report.timing import Timing
from normfold.report.training import TrainingReport
from normfold.report.verdict import AgreementCheck, Artefact

SCHEMA = 2


@dataclass(frozen=True)
class Applied:
    """A site that a pass rewrote. ``site`` is a module path, ``kind`` as in `Site.kind`."""

    site: str
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Declined:
    """A site that a pass matched and left alone, with a stable reason code and what would help."""

    site: str
    kind: str
    code: str
    reason: str
    detail: str = ""
    node: str = ""
    line: str = ""
    hint: str = ""

    @property
    def place(self) -> str:
        """The detail, the node in the way and the user's source line, in words."""
        return ", ".join(filter(None, [self.detail, self.node and f"at {self.node}", self.line]))


@dataclass(frozen=True)
class Warned:
    """Something that is right but worth knowing, such as a large gain before a cast to half precision."""

    site: str
    code: str
    text: str


@dataclass(frozen=True)
class OutputCheck:
    """One output under one input: errors relative to the output's scale, against the float64 reference.

    ``baseline`` is the original's own error, ``error`` the result's, ``tolerance`` what was allowed.
    """

    output: str
    inputs: str
    baseline: float
    error: float
    tolerance: float
    max_abs: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class Check:
    """A verdict: truthy when every output was inside its tolerance.

    ``kind`` is ``capture``, ``algebra`` (float64, un-baked), ``rounding`` (the result in its own dtype),
    ``approximation-unbaked`` / ``approximation`` (the same two, where the result may err by a budget),
    ``onnxruntime-all`` / ``onnxruntime-none`` / ``tensorrt`` (a file or engine as it runs), or ``float16`` /
    ``bfloat16`` (every op rounded to its type). ``needed_tolerance`` is what would have passed, ``artefact`` the
    name of the file that it is about.
    """

    kind: str
    outputs: tuple[OutputCheck, ...]
    seconds: float = 0.0
    seed: int = 0
    note: str = ""
    artefact: str = ""

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        return all(output.ok for output in self.outputs)

    def failures(self) -> list[str]:
        """What is outside its tolerance, in words: the worst output."""
        worst = self.worst
        if self.ok or worst is None:
            return []
        return [
            f"error {worst.error:.2e} at {worst.output} / {worst.inputs}, {worst.tolerance:.2e} allowed"
        ]

    @property
    def worst(self) -> OutputCheck | None:
        """The output that used most of its tolerance."""
        bad = [output for output in self.outputs if not output.ok]
        return max(bad or self.outputs, key=_used, default=None)

    @property
    def max_rel(self) -> float:
        """The largest relative error; NaN if there is one."""
        return max((output.error for output in self.outputs), key=_nan_first, default=0.0)

    @property
    def needed_tolerance(self) -> float:
        """The relative tolerance that every output would have met."""
        return self.max_rel


def _used(output: OutputCheck) -> float:
    return _nan_first(output.error / (output.tolerance or 1e-30))


def _nan_first(error: float) -> float:
    return float("inf") if error != error else error


AnyCheck = Check | AgreementCheck


@dataclass
class PassReport:
    """What one pass did."""

    spec: str
    exactness: str
    applied: list[Applied] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)
    modified: bool = False
    rewrites: int = 0
    seconds: float = 0.0
    check: Check | None = None
    certificate: Certificate | None = None
    effects: tuple[str, ...] = ()

    def add(self, more: PassReport) -> None:
        """Take in what another run did to the same graph; what it declined is left out."""
        self.applied += more.applied
        self.warnings += more.warnings
        self.edits += more.edits
        self.modified |= more.modified
        self.rewrites += more.rewrites
        self.seconds += more.seconds

    @property
    def name(self) -> str:
        """The pass without its options."""
        return self.spec.partition("{")[0]


@dataclass
class SiteStatus:
    """One norm or per-channel constant at the end: ``state`` is ``gone``, ``converted``, ``left`` or ``kept``.

    ``gone``: no op is left of it. ``converted``: a cheaper norm stands in its place (RMSNorm for LayerNorm).
    ``kept``: a norm whose statistics are computed at run time, so that only its affine could fold (``detail``
    says whether it did). ``left``: declined, with the reason's code.
    """

    site: str
    kind: str
    state: str
    code: str = ""
    detail: str = ""
    line: str = ""


@dataclass(frozen=True)
class Report:
    """The whole run: job, passes, verdicts, sites, files, costs. `normfold.report.events` folds it.

    Attributes:
        job: what was asked for, as the TOML that `normfold.job.Job.from_toml` reads.
        size_before: bytes of the model file, or of the parameters where there is none.
        parameters_before, parameters_after: bytes of the parameters of the graph.
        ranges: whether half precision, or integers, hold what is computed in them; nothing where a network keeps
            its types.
        around: lines of the graph around sites, before the passes and behind them.
        layers: where a file whose verdict failed leaves the original.
        unmet: requirements of the policy that are not met.
        missing: what this machine lacks for something that was asked for.
        census, opset: ops of the first ONNX file, counted, and its opset; 0 where there is none.
    """

    job: str = ""
    model: str = ""
    inputs: str = ""
    passes: Sequence[PassReport] = ()
    checks: Sequence[AnyCheck] = ()
    sites: Sequence[SiteStatus] = ()
    notes: Sequence[str] = ()
    artefacts: Sequence[Artefact] = ()
    census: dict[str, int] = field(default_factory=dict)
    opset: int = 0
    size_before: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    confinement: str = ""
    timing: Timing | None = None
    ranges: Sequence[Range] = ()
    engine: EngineReport | None = None
    recalibration: RecalibrationReport | None = None
    training: TrainingReport | None = None
    quantization: Sequence[QuantizationReport] = ()
    layers: LayerReport | None = None
    around: Sequence[Around] = ()
    unmet: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def lowered(self) -> str:
        """The type that weights and activations were lowered to; empty where they keep theirs."""
        return next((item.type for item in self.ranges if not item.target), "")

    @property
    def pipeline(self) -> str:
        """Everything that rewrote the graph, as pipeline text."""
        return ",".join(item.spec for item in self.passes)

    @property
    def integer_share(self) -> float | None:
        """Share of convolutions, products and sums that run in integers; None where they were not counted."""
        if not self.quantization:
            return None
        made = self.quantization[-1]
        integer, floats = sum(made.integer.values()), sum(made.floats.values())
        return integer / (integer + floats) if integer + floats else None

    @property
    def speed(self) -> tuple[float, float] | None:
        """95 % interval of the file's time relative to the original's; None where nothing was timed."""
        if self.timing is not None:
            return self.timing.interval
        placed = self.quantization[-1].placement if self.quantization else None
        return None if placed is None else placed.interval

    def failures(self) -> list[str]:
        """Why the result may not be used, in words; empty if it may."""
        found = list(self.unmet)
        if self.training is not None and not self.training.ok:
            found.append(f"the student is not accepted: {self.training.refusal}")
        found += [made.refusal for made in self.quantization if not made.ok]
        for item in self.certificates():
            found += [f"certificate: {text}" for text in item.failures()]
        found += [f"range: {item.words}" for item in self.ranges if item.state == "failed"]
        for check in self.all_checks():
            found += [f"{check.kind}: {text}" for text in check.failures()]
        return found

    def certificates(self) -> list[Certificate]:
        """Those behind passes, in order."""
        found = [item.certificate for item in self.passes]
        return [certificate for certificate in found if certificate is not None]

    @property
    def ok(self) -> bool:
        """True if every verdict passed, every requirement is met, and what was trained or quantised is usable."""
        return not self.failures()

    @property
    def exit_code(self) -> int:
        """1 for a failed verdict or policy, 3 where something is missing on this machine, else 0."""
        return 1 if not self.ok else 3 if self.missing else 0

    def all_checks(self) -> list[AnyCheck]:
        """Verdicts after passes, then the final ones."""
        own: list[AnyCheck] = [item.check for item in self.passes if item.check is not None]
        return [*own, *self.checks]

    def why(self, site: str) -> str:
        """Why a site is as it is: what was applied, or the reason of the last decline.

        Raises:
            KeyError: no pass met such a site.
        """
        state = next((status for status in self.sites if status.site == site), None)
        stuck = state is not None and bool(state.code)  # restore, behind the decline, says less
        for item in reversed(self.passes):
            for applied in item.applied:
                if applied.site == site and not stuck:
                    return f"{site}: {item.spec}: {applied.detail or 'applied'}"
            for declined in item.declined:
                if declined.site == site:
                    place = f" ({declined.place})" if declined.place else ""
                    return (
                        f"{site}: {declined.code} {declined.reason}{place}; hint: {declined.hint}"
                    )
        known = sorted({status.site for status in self.sites})
        raise KeyError(f"no site `{site}`; sites: {', '.join(known[:20])}")

    def warnings(self) -> list[Warned]:
        """Every warning, in pass order."""
        return [warned for item in self.passes for warned in item.warnings]

    def counts(self) -> dict[str, dict[str, int]]:
        """Sites by kind and final state."""
        table: dict[str, dict[str, int]] = {}
        for status in self.sites:
            row = table.setdefault(status.kind, {})
            row[status.state] = row.get(status.state, 0) + 1
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with ``schema`` and what is derived: ``ok``, ``exit_code``, ``outcome``."""
        data: dict[str, Any] = {"schema": SCHEMA, "ok": self.ok, "exit_code": self.exit_code}
        data |= {"outcome": outcome(self), "pipeline": self.pipeline, **dataclasses.asdict(self)}
        data["counts"] = self.counts()
        pairs: list[tuple[Any, Any]] = list(zip(self.checks, data["checks"], strict=True))
        pairs += [
            (item.check, raw["check"])
            for item, raw in zip(self.passes, data["passes"], strict=True)
            if item.check is not None
        ]
        for check, raw in pairs:
            raw["ok"], raw["failures"] = check.ok, check.failures()
            if isinstance(check, Check):
                raw["needed_tolerance"] = check.needed_tolerance
        if self.training is not None:
            data["training"]["ok"] = self.training.ok
        for made, raw in zip(self.quantization, data["quantization"], strict=True):
            raw["ok"], raw["foretold"] = made.ok, made.foretold
        if self.timing is not None:
            data["timing"] = self.timing.to_dict()
        return data

    def to_json(self) -> str:
        """The report as JSON (documented in normfold/report/schema.json); NaN is written as null."""
        return json_text(self.to_dict())


def outcome(report: Report) -> str:
    """The last line of a run: what happened; it agrees with the exit code."""
    failures = report.failures()
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        asked = report.job or report.artefacts
        first = report.layers.first if report.layers is not None else None
        where = "" if first is None else f"; the first layer that is wrong: {first.place}"
        return f"{'NOT written' if asked else 'FAILED'}: {failures[0]}{more}{where}"
    parts = [f"{item.path}: {item.verdict}" for item in report.artefacts if item.written]
    if not parts:
        judged = "equivalent" if report.all_checks() else "not judged"
        if report.quantization:
            judged = f"simulated, {report.quantization[-1].words}"
        parts = [f"nothing written: {judged}"]
    else:
        parts[0] = f"wrote {parts[0]}"
    return "; ".join([*parts, *report.missing])


def json_text(data: Any) -> str:
    """Plain data as JSON; what JSON has no number for (NaN, infinities) is null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
