"""What a run did, as data: one object behind the text, the JSON and every later rendering."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from normfold.report.engine import EngineReport
from normfold.report.quantization import QuantizationReport
from normfold.report.timing import Timing
from normfold.report.training import TrainingReport

SCHEMA = 1


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
    ``onnxruntime-all`` / ``onnxruntime-none`` / ``tensorrt`` (a file or engine as it runs), or ``float16`` /
    ``bfloat16`` (every op rounded to its type). ``needed_tolerance`` is what would have passed.
    """

    kind: str
    outputs: tuple[OutputCheck, ...]
    seconds: float = 0.0
    seed: int = 0
    note: str = ""

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        return all(output.ok for output in self.outputs)

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

    @property
    def name(self) -> str:
        """The pass without its options."""
        return self.spec.partition("{")[0]


@dataclass(frozen=True)
class Island:
    """An op that stays in float32 in a network of half precision: module path, op, node, and why."""

    site: str
    op: str
    node: str
    why: str


@dataclass(frozen=True)
class Precision:
    """What weights and activations were lowered to (``float16``), and what was not."""

    dtype: str
    islands: tuple[Island, ...] = ()


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


@dataclass
class Report:
    """The whole run: passes, verdicts, sites, artefacts, costs."""

    model: str = ""
    pipeline: str = ""
    inputs: str = ""
    passes: list[PassReport] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    sites: list[SiteStatus] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    census: dict[str, int] = field(default_factory=dict)
    parameters_before: int = 0
    parameters_after: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    timing: Timing | None = None
    precision: Precision | None = None
    engine: EngineReport | None = None
    training: TrainingReport | None = None
    quantization: list[QuantizationReport] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if every verdict passed, every requirement is met, and what was trained or quantised is usable."""
        trained = self.training is None or self.training.ok
        usable = trained and all(made.ok for made in self.quantization)
        return usable and not self.unmet and all(check.ok for check in self.all_checks())

    def all_checks(self) -> list[Check]:
        """Verdicts after passes, then the final ones."""
        return [item.check for item in self.passes if item.check is not None] + self.checks

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
        """Plain data for JSON, with ``schema`` and the derived ``ok``."""
        data = {"schema": SCHEMA, "ok": self.ok, **dataclasses.asdict(self)}
        data["counts"] = self.counts()
        for check, raw in zip(self.checks, data["checks"], strict=True):
            raw.update(ok=check.ok, needed_tolerance=check.needed_tolerance)
        for item, raw in zip(self.passes, data["passes"], strict=True):
            if item.check is not None:
                raw["check"].update(ok=item.check.ok, needed_tolerance=item.check.needed_tolerance)
        if self.training is not None:
            data["training"]["ok"] = self.training.ok
        for made, raw in zip(self.quantization, data["quantization"], strict=True):
            raw["ok"] = made.ok
        if self.timing is not None:
            data["timing"] = self.timing.to_dict()
        return data

    def to_json(self) -> str:
        """The report as JSON (documented in normfold/report/schema.json); NaN is written as null."""
        return json_text(self.to_dict())


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
