"""When an option means something. What means nothing in a job is refused, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normfold.job.presets import trained


@dataclass(frozen=True)
class Facts:
    """What a job does, as far as options depend on it.

    It runs passes of the user's ``own``, and ``stores`` integers also where it rounds nothing.
    """

    own: bool
    bytes: bool
    recalibrates: str | None
    trains: bool
    stores: bool
    quantizes: bool
    int8: bool
    ranged: bool
    evidence: str | None
    has_data: bool
    has_inputs: bool
    half: bool
    judges: bool
    formats: frozenset[str]
    times: bool

    @property
    def measures(self) -> bool:
        """True if passes of one's own may measure on samples, or statistics are taken from them."""
        return self.own or self.recalibrates is not None

    @property
    def approximate(self) -> bool:
        """True if the result is not exact."""
        return self.trains or self.quantizes


@dataclass(frozen=True)
class Rule:
    """``holds`` for jobs in which the option means something; ``why`` it does not in others; what to do."""

    holds: Callable[[Facts], bool]
    why: str
    hint: str


_TRAINED = " or ".join(trained())
RULES = {
    "always": Rule(lambda job: True, "", ""),
    "training": Rule(
        lambda job: job.trains,
        "nothing is trained: this conversion is exact",
        f"it goes with `--to` {_TRAINED}, and `--data`",
    ),
    "samples": Rule(
        lambda job: job.approximate or job.measures or not job.has_inputs,
        "the inputs are given, and there is nothing to train or to measure: this conversion is exact",
        f"it goes with `--to` {_TRAINED}, `--quantize`, `--recalibrate`, or `--passes` that measure; or leave out "
        "`--input`",
    ),
    "bytes": Rule(
        lambda job: job.bytes, "images are taken as they are", "it goes with `--uint8-input`"
    ),
    "recalibration": Rule(
        lambda job: job.recalibrates is not None,
        "no statistics are taken anew",
        "it goes with `--recalibrate`",
    ),
    "recalibration-alpha": Rule(
        lambda job: job.recalibrates == "alpha",
        "statistics are not blended by a share",
        "it goes with `--recalibrate alpha`",
    ),
    "recalibration-prior": Rule(
        lambda job: job.recalibrates == "prior",
        "statistics are not blended as if there were more samples",
        "it goes with `--recalibrate prior`",
    ),
    "generation": Rule(
        lambda job: not (job.trains or job.has_data),
        "training and samples take whole sequences, without a cache",
        "leave it out, or leave out `--data` and what needs it",
    ),
    "data": Rule(lambda job: job.has_data, "there are no samples", "give `--data`"),
    "samples-given": Rule(
        lambda job: job.has_data and (job.approximate or job.recalibrates is not None),
        "there are no samples to apply it to",
        "it goes with `--data`, to train, to quantise or to recalibrate",
    ),
    "half": Rule(
        lambda job: job.half,
        "nothing is in half precision",
        "it goes with `--precision fp16` or `bf16`",
    ),
    "integers": Rule(
        lambda job: job.quantizes, "nothing is quantised", "it goes with `--quantize`"
    ),
    "weights": Rule(lambda job: job.stores, "no integers are written", "it goes with `--quantize`"),
    "int8": Rule(
        lambda job: job.int8,
        "activations are not on integer grids in this scheme",
        "it goes with `--quantize int8`",
    ),
    "evidence": Rule(
        lambda job: job.quantizes and not job.has_data,
        "no inputs are made",
        "it goes with `--quantize`, without `--data`",
    ),
    "synthesis": Rule(
        lambda job: job.evidence not in (None, "noise"),
        "no inputs are synthesised",
        "it goes with `--quantize int8` or `fp8`, without `--data` and `--evidence noise`",
    ),
    "approximate": Rule(
        lambda job: job.approximate,
        "this conversion is exact and loses nothing",
        f"it goes with `--quantize`, or with `--to` {_TRAINED}",
    ),
    "engine": Rule(
        lambda job: "trt" in job.formats,
        "an option of engines, and no engine is built",
        "`--export trt` builds one",
    ),
    "onnx-file": Rule(
        lambda job: bool(job.formats - {"pt2", "module"}),
        "no ONNX file is written",
        "it goes with `--export onnx`, `openvino` or `trt`",
    ),
    "onnxruntime": Rule(
        lambda job: job.times,
        "it times ONNX files in onnxruntime, and none is written for it",
        "export `onnx` for `ort-x86` or `ort-arm`; other runtimes time their engines themselves",
    ),
    "judges": Rule(lambda job: job.judges, "nothing is judged", "leave out `--verify off`"),
    "judged": Rule(
        lambda job: job.judges and bool(job.formats),
        "nothing is judged",
        "leave out `--verify off`, and write a file",
    ),
}
