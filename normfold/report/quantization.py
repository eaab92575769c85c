"""What quantising did: where ranges came from, how far they can be trusted, what runs in integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

# Of the divergence that is foretold: what synthesised inputs hide of it; what a loss of 1 above one that fits adds
# to that; and how much it adds at most.
_HIDDEN, _MATCHED, _UNMATCHED, _MOST = 2.5, 0.05, 40.0, 12.0


@dataclass(frozen=True)
class Evidence:
    """What the ranges of activations rest on.

    Attributes:
        source: in words: "synthesised: 64 images, 25 steps".
        loss, noise: distance of the inputs' statistics from those of the norms, scale-free, and that of the noise
            that they started from; None where nothing was synthesised.
        covered: share of the tensors on grids that the norms' statistics reach.
        apart: tensors on which inputs and statistics disagree, and by what factor.
        worst: the norms whose statistics are matched worst, and their part of the loss.
        distance: mean |log2| of the ratio of measured and derived widths; None where only one of them is known.
    """

    source: str
    loss: float | None = None
    noise: float | None = None
    covered: float | None = None
    apart: dict[str, float] = field(default_factory=dict)
    distance: float | None = None
    worst: dict[str, float] = field(default_factory=dict)

    # of the loss that synthesised inputs keep; sound networks come far below, lying statistics far above
    SUSPICIOUS: ClassVar[float] = 0.25
    NATURAL: ClassVar[float] = 0.11  # 1.5 times the loss of natural images on trained networks

    @property
    def doubtful(self) -> bool:
        """True if no inputs were found that fit the statistics."""
        return self.loss is not None and self.loss > self.SUSPICIOUS


@dataclass(frozen=True)
class Confidence:
    """How far an integer network may be trusted that was judged without data, from 0 to 1.

    Attributes:
        score: the least of the parts. Below `TRUSTED` the network should be judged on data.
        parts: each from 0 to 1: ``statistics`` (what synthesised inputs keep of the loss), ``ranges`` (measured
            against derived), ``divergence`` (of the outputs on those inputs), ``coverage`` (tensors that the
            statistics reach).
    """

    score: float
    parts: dict[str, float]

    TRUSTED: ClassVar[float] = 0.5


@dataclass(frozen=True)
class MixedReport:
    """Formats by layer: what was asked for, what was chosen, and what there was to choose from.

    Attributes:
        unit: of costs: ``bytes`` of the weights, or ``ms`` of a run of the example inputs.
        budget, cost: what was allowed and what is taken.
        harm: summed divergence of the layers in their formats, each measured alone; it ranks choices.
        divergence: the same measure of all of them together.
        bits: of every layer.
        frontier: (cost, harm) of every choice that no other beats.
        layers: path, number of weights, and harm by number of bits.
        measured: cost, divergence and points of changed answers of some choices as a whole, weights alone, on the
            inputs that ranges are from.
    """

    unit: str
    budget: float | None
    cost: float
    harm: float
    divergence: float
    bits: dict[str, int]
    frontier: tuple[tuple[float, float], ...]
    layers: tuple[tuple[str, int, dict[int, float]], ...]
    measured: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class LayerTime:
    """Seconds that layers which kernels fuse take of a run: in integers with the conversions of their results, and
    in floats."""

    layers: tuple[str, ...]
    integers: float
    floats: float


@dataclass(frozen=True)
class Placement:
    """What stays in floats because integers were measured to be slower.

    Attributes:
        target: what the file is for.
        ratio, interval: time of the file relative to the network in floats, and its 95 % interval; of the integer
            file that was slower where the whole network stays in floats.
        whole: the whole network stays in floats.
        layers: that stay in floats.
        network, machine: what was measured, and where.
        reused: it was decided by an earlier run.
    """

    target: str
    ratio: float
    interval: tuple[float, float]
    whole: bool
    layers: tuple[LayerTime, ...]
    network: str = ""
    machine: str = ""
    reused: bool = False


@dataclass
class QuantizationReport:
    """One quantised network.

    Attributes:
        scheme: ``int8``, ...; ``target``: for which runtime.
        weights, activations: how many tensors of each are on grids.
        drift: of the integer network from the float one on the inputs: agreement, KL, signal-to-noise in dB.
        integer, floats: ops of the runtime's own optimised model by kind (``{"Conv": 20}``), in integers and not.
        census: every op type of that model (of the typed network for TensorRT: layers by type), counted.
        blocked: linear ops and sums that stay in floats: name, and which rule keeps them there.
        mixed: the formats of the layers, where they differ.
        tried: what ways to put the network on grids err on held-out inputs, where more effort was asked for.
        placement: what stays in floats because integers are slower there; None where nothing was timed.
        max_drop: points that may be lost; None for no limit.
        warnings: what should be looked at before deployment.
    """

    scheme: str
    target: str
    evidence: Evidence | None = None
    weights: int = 0
    activations: int = 0
    drift: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence | None = None
    integer: dict[str, int] = field(default_factory=dict)
    floats: dict[str, int] = field(default_factory=dict)
    census: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    mixed: MixedReport | None = None
    tried: dict[str, float] = field(default_factory=dict)
    placement: Placement | None = None
    max_drop: float | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> float | None:
        """See `lost`: of the simulation."""
        return lost(self.drift)

    @property
    def foretold(self) -> float | None:
        """KL in nats of the answers to real inputs, at most: an upper bound in nine cases of ten.

        That on synthesised inputs 2.5 times, and more where they do not have the statistics that norms remember.
        Fitted to networks of which the true one is known (`benchmarks.foretold`). None where there are no answers,
        or the inputs are the user's.
        """
        kl, evidence = self.drift.get("kl"), self.evidence
        if kl is None or evidence is None or evidence.loss is None:
            return None
        beyond = max(0.0, evidence.loss - _MATCHED)
        return _HIDDEN * float(kl) * min(1 + _UNMATCHED * beyond, _MOST)

    @property
    def ok(self) -> bool:
        """True if the simulation keeps the limit; the file has a verdict of its own."""
        return self.max_drop is None or (self.lost is not None and self.lost <= self.max_drop)

    @property
    def words(self) -> str:
        """How far the simulation is from the float network."""
        agreement, ratio = self.drift.get("agreement"), self.drift.get("snr_db")
        parts = [] if agreement is None else [f"agreement {agreement:.1%}"]
        return (
            ", ".join([*parts, *([] if ratio is None else [f"{ratio:.1f} dB"])]) or "not compared"
        )

    @property
    def refusal(self) -> str:
        """Why it may not be used; empty if it may."""
        if self.ok:
            return ""
        lost = "an unknown number of" if self.lost is None else f"{self.lost:.3g}"
        return f"quantising loses {lost} points, {self.max_drop:g} allowed"


def lost(drift: dict[str, Any]) -> float | None:
    """What is lost by a comparison: of the user's metric, else points of accuracy, else of agreement."""
    if drift.get("metric_teacher") is not None:
        return float(drift["metric_teacher"] - drift["metric_student"])
    if drift.get("drop") is not None:
        return float(drift["drop"])
    agreement = drift.get("agreement")
    return None if agreement is None else 100 * (1 - float(agreement))
