"""The steps of a job. Their fields are the options; what a step does is in `normfold.steps`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from normfold.errors import UsageError
from normfold.job.option import Options, option
from normfold.job.presets import PRESETS, preset, trained
from normfold.target import RANGED, SCHEMES

Evidence = Literal["auto", "synthetic", "patches", "zeroq", "analytic", "noise"]


@dataclass(frozen=True)
class Rewrite(Options):
    """Run passes: a preset, or a pipeline of the user's own (text, or pass objects in Python)."""

    GROUP: ClassVar[str] = "What to do"

    to: str = option(
        "folded",
        f"Exact: {', '.join(PRESETS)}. Trained on --data, then folded: {', '.join(trained())}.",
        metavar="PRESET",
    )
    passes: Any = option(
        None,
        "Pipeline instead of a preset: `a,b{option=value}`.",
        "--passes",
        "-p",
        metavar="TEXT",
    )
    untie: bool = option(False, "An embedding table that is also the head may be copied.")
    equalize: bool = option(False, "Equalise channels across layers (exact).")
    rotate: bool = option(
        False, "Rotate the residual streams that RMSNorms read (exact; --to rmsnorm)."
    )

    @property
    def trained(self) -> bool:
        """True if the preset replaces norms by others that must be trained."""
        return self.passes is None and self.to in trained()

    @property
    def pipeline(self) -> Any:
        """Pipeline text, or the pass objects that were given; `untie` is not yet in it."""
        if self.passes is not None and not isinstance(self.passes, str):
            if self.equalize or self.rotate:
                raise UsageError("pass objects are run as they are", hint="put the pass among them")
            return self.passes
        if self.passes is not None and not self.passes.strip():
            raise UsageError("`--passes` names no pass", hint="`--to baked` runs none but `bake`")
        text = self.passes or preset("rmsnorm" if self.trained else self.to)
        extra = [
            name
            for name, on in (("equalize", self.equalize), ("rotate-stream", self.rotate))
            if on and name not in text
        ]
        return insert_exact(text, extra)


def insert_exact(text: str, extra: list[str]) -> str:
    """Exact passes stand in front of what puts norms back together."""
    if not extra:
        return text
    parts = text.split(",")
    at = next((n for n, p in enumerate(parts) if p.strip() in ("restore", "bake")), len(parts))
    return ",".join([*parts[:at], *extra, *parts[at:]])


@dataclass(frozen=True)
class Recalibrate(Options):
    """Give BatchNorms the statistics of samples of where the network will run, before they are folded."""

    GROUP: ClassVar[str] = "Recalibrating (--recalibrate)"
    WHEN: ClassVar[str] = "recalibration"

    method: Literal["adabn", "alpha", "prior"] | None = option(
        None,
        "Take statistics of BatchNorms from --data: alone (adabn), or blended with the network's own, by a share "
        "(alpha) or as if those had been of so many samples more (prior).",
        "--recalibrate",
        keyword="recalibrate",
        when="always",
    )
    source_weight: float = option(
        0.9,
        "Share of the network's own statistics: new = share * own + (1 - share) * samples; with `alpha`.",
        metavar="SHARE",
        low=0,
        high=1,
        when="recalibration-alpha",
    )
    source_samples: int = option(
        16,
        "N samples that the network's own statistics count for: their share is N / (N + n); with `prior`.",
        metavar="N",
        low=0,
        when="recalibration-prior",
    )
    moments: Literal["both", "mean", "variance"] = option(
        "both", "What of the statistics is new.", "--recalibrate-part", keyword="recalibrate_part"
    )

    def share_of_source(self, samples: int) -> float:
        """What the network's own statistics count for beside so many samples, from 0 to 1."""
        match self.method:
            case "alpha":
                return self.source_weight
            case "prior":
                return self.source_samples / (self.source_samples + samples)
        return 0.0


@dataclass(frozen=True)
class Train(Options):
    """Replace LayerNorms by norms that fold away, and distil the student from the original.

    ``to`` is the kind of norm; ``warmup`` the share of the steps in which the rate rises; ``retries`` how often a
    student that diverges is taken back, each time with a third of the rate.
    """

    GROUP: ClassVar[str] = f"Training (--to {', '.join(trained())})"
    WHEN: ClassVar[str] = "training"

    norms: tuple[str, ...] = option(
        (),
        "LayerNorms to replace, by module path; repeatable.",
        metavar="PATTERN",
        default_text="all",
    )
    budget: float | None = option(
        None,
        "Replace only the cheapest norms, as many as (95 % sure) lose at most so much before any training.",
        metavar="POINTS",
        low=0,
    )
    steps: int | None = option(
        None, "Optimizer steps; 0: none.", low=0, default_text="four epochs, at least 300"
    )
    batch_size: int = option(64, "Samples per step, over all ranks.", low=1)
    rate: float = option(1e-3, "Peak learning rate.")
    clip: float = option(1.0, "Largest norm of the gradient.")
    temperature: float = option(1.0, "Of the softmax that is compared.")
    features: float = option(1.0, "Weight of the residual streams beside the outputs.", low=0)
    values: bool = option(False, "Outputs are not class scores: compare their values.")
    transition: float | None = option(
        None,
        "Share of the steps over which the norms go from LayerNorm to what replaces it.",
        low=0,
        high=1,
        default_text="the norm's own: 0.5 for prepbn, else 0",
    )
    stages: int = option(
        1, "Groups in which the norms take turns, front to back; 0: one at a time.", low=0
    )
    hold_out: float = option(0.1, "Share of the samples that is only judged on.")
    evaluations: int = option(20, "Evaluations on the held-out samples.", low=1)
    patience: int | None = option(
        None, "Stop after so many evaluations without a better student.", low=1
    )
    checkpoint: Path | None = option(
        None, "File to resume from after an interruption; written at every evaluation."
    )
    to: str = "prepbn"
    warmup: float = 0.05
    retries: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate", "clip", "temperature"):
            if not getattr(self, name) > 0:
                raise UsageError(f"`--{name}` must be above 0", found=f"{getattr(self, name)}")
        if not 0 < self.hold_out < 1:
            raise UsageError("`--hold-out` must be above 0 and below 1", found=f"{self.hold_out}")
        if not 0 <= self.warmup <= 1:
            raise UsageError("`warmup` must be from 0 to 1", found=f"{self.warmup}")

    @property
    def logits(self) -> bool:
        """True if outputs are compared as class scores: KL(teacher || student) over the last axis."""
        return not self.values

    def steps_for(self, samples: int) -> int:
        """How many steps to take on so many training samples."""
        return self.steps or max(300, 4 * math.ceil(samples / self.batch_size))

    def transition_for(self, steps: int, usual: float = 0.0) -> int:
        """How many of the steps the norms take to get away from the LayerNorm; by default the norm's own share."""
        return round((usual if self.transition is None else self.transition) * steps)

    def share_of_rate(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at a step (from 0): linear warm-up, then a cosine to zero."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class Cast(Options):
    """Weights and activations in another type; inputs and outputs keep theirs."""

    GROUP: ClassVar[str] = "What to do"

    precision: Literal["fp32", "fp16", "bf16"] | None = option(
        None,
        "Type of weights and activations; inputs and outputs keep theirs.",
        default_text="as stored; float32 for CPUs; fp16 beside 8-bit floats",
    )
    keep_fp32: tuple[str, ...] = option(
        (),
        "Module paths, ops or nodes that stay in float32 (`blocks.3.*`, `softmax`); repeatable.",
        metavar="PATTERN",
        when="half",
    )


@dataclass(frozen=True)
class Quantize(Options):
    """Weights, or weights and activations, on grids of few bits.

    ``clip_ranges``: narrow intervals where the outputs say that it helps (`normfold.ranges.clipping`);
    ``synthesis_rate``: of Adam on the inputs, with a cosine to zero.
    """

    GROUP: ClassVar[str] = "Quantising (--quantize)"
    WHEN: ClassVar[str] = "integers"
    RANGES: ClassVar[str] = "Quantising: ranges of activations"
    LAYERS: ClassVar[str] = "Quantising: formats by layer"

    scheme: (
        Literal["int8", "int8-dynamic", "int8-weights", "int4-weights", "lossless", "fp8"] | None
    ) = option(
        None,
        "Write integers: weights and activations, inputs at run time, or weights alone; lossless: weights "
        "that are on a grid already, exactly; fp8: 8-bit floats.",
        "--quantize",
        "--scheme",
        group="What to do",
        when="always",
        keyword="quantize",
    )
    evidence: Evidence = option(
        "auto",
        "Without --data: inputs synthesised from the norms' statistics, joined with the statistics themselves "
        "(auto), or one of them alone; noise is a control.",
        group=RANGES,
        when="evidence",
    )
    effort: int = option(
        1,
        "0: 25 steps of synthesis; 1: more until the statistics fit; 2: twice the images above 128 pixels, until "
        "they fit as those of natural images do, and equalized channels where held-out inputs say so; 3: and "
        "learned rounding.",
        low=0,
        high=3,
        group=RANGES,
        when="int8",
    )
    images: int = option(
        0,
        "Inputs to synthesise; 0: 64, or 16 above 128 pixels.",
        low=0,
        group=RANGES,
        when="evidence",
    )
    synthesis_steps: int | None = option(
        None,
        "Steps of their synthesis.",
        low=1,
        group=RANGES,
        when="synthesis",
        default_text="35, and up to 15 more until the statistics fit (--effort)",
    )
    flip: bool = option(True, "Mirror them every other step.", group=RANGES, when="synthesis")
    crop: int = option(
        0, "Shift them by up to so many pixels.", low=0, group=RANGES, when="synthesis"
    )
    blur: float = option(
        0.0, "Deviation of their Gaussian blur.", low=0, group=RANGES, when="synthesis"
    )
    pixels: tuple[float, float] | None = option(
        None,
        "Smallest and largest value of valid inputs.",
        metavar="LOW HIGH",
        group=RANGES,
        default_text="from the network's config",
    )
    save_synthetic: Path | None = option(
        None, "File (.npz) for the synthesised inputs.", group=RANGES, when="synthesis"
    )
    device: str | None = option(
        None,
        "Where ranges are found.",
        metavar="cpu|cuda",
        group=RANGES,
        default_text="cuda where there is one",
    )
    target_size: float | None = option(
        None,
        "Bytes that the weights may take, or their share of what 8 bits take (up to 1).",
        low=0,
        group=LAYERS,
    )
    target_latency: float | None = option(
        None,
        "Milliseconds that the example inputs may take in onnxruntime on this machine.",
        low=0,
        group=LAYERS,
    )
    simulate: bool = option(
        False, "2, 4 or 8 bits for every layer, as in the ZeroQ paper; stored in 8.", group=LAYERS
    )
    activation_bits: int = option(
        8,
        "Below 8: simulated, and nothing is written.",
        low=2,
        high=8,
        group=LAYERS,
        when="int8",
    )
    migrate: bool = option(
        False, "Move scales from behind norms into weights, by what was measured (exact)."
    )
    correct_bias: bool | None = option(
        None,
        "Take the mean error of rounded weights out of biases (int8: on; --no-correct-bias).",
    )
    weights: str | None = option(
        None,
        "What puts weights on grids, as `quantize-weights{bits=6 rounding=squant}`.",
        metavar="PIPELINE",
        default_text="as the scheme says",
        when="weights",
    )
    vnni: bool = option(True, "--no-vnni: x86 without VNNI, weights in 7 bits.", when="int8")
    clip_ranges: bool = True
    synthesis_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels is not None and not self.pixels[0] < self.pixels[1]:
            raise UsageError(
                "`--pixels` takes the smallest value of valid inputs, then the largest",
                found=f"{self.pixels[0]:g} {self.pixels[1]:g}",
            )

    @property
    def corrects(self) -> bool:
        """True if mean errors are taken out of biases; what ranges rest on tells the means."""
        return self.correct_bias or (self.correct_bias is None and self.scheme in ("int8", None))

    @property
    def exact(self) -> bool:
        """True if nothing is rounded."""
        return self.scheme == "lossless"

    @property
    def mixed(self) -> bool:
        """True if every layer gets a format of its own."""
        return self.target_size is not None or self.target_latency is not None or self.simulate

    @property
    def ranged(self) -> bool:
        """True if activations are on grids whose ranges are found beforehand."""
        return (self.scheme or "int8") in RANGED

    def schemes(self) -> tuple[str, ...]:
        """What may be asked for."""
        return SCHEMES


Step = Recalibrate | Rewrite | Train | Cast | Quantize
