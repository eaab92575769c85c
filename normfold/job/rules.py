"""When an option means something. What means nothing in a job is refused, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normfold.job.presets import trained

if TYPE_CHECKING:
    from normfold.job.job import Job


@dataclass(frozen=True)
class Rule:
    """``holds`` for jobs in which the option means something; ``why`` it does not in others; what to do."""

    holds: Callable[[Job], bool]
    why: str
    hint: str


_TRAINED = " or ".join(trained())
RULES = {
    "always": Rule(lambda job: True, "", ""),
    "training": Rule(
        lambda job: job.train is not None,
        "nothing is trained: this conversion is exact",
        f"it goes with `--to` {_TRAINED}, and `--data`",
    ),
    "samples": Rule(
        lambda job: job.train is not None or job.quantize is not None,
        "there is nothing to train and nothing to measure: this conversion is exact",
        f"it goes with `--to` {_TRAINED}, or with `--quantize`",
    ),
    "data": Rule(lambda job: job.source.data is not None, "there are no samples", "give `--data`"),
    "samples-given": Rule(
        lambda job: job.source.data is not None and (job.train or job.quantize) is not None,
        "there are no samples to apply it to",
        "it goes with `--data`, to train or to quantise",
    ),
    "half": Rule(
        lambda job: job.cast is not None and job.cast.precision in ("fp16", "bf16"),
        "nothing is in half precision",
        "it goes with `--precision fp16` or `bf16`",
    ),
    "integers": Rule(
        lambda job: job.quantize is not None, "nothing is quantised", "it goes with `--quantize`"
    ),
    "synthesis": Rule(
        lambda job: job.quantize is not None and job.source.data is None,
        "no inputs are synthesised",
        "it goes with `--quantize`, without `--data`",
    ),
    "approximate": Rule(
        lambda job: job.train is not None or job.quantize is not None,
        "this conversion is exact and loses nothing",
        f"it goes with `--quantize`, or with `--to` {_TRAINED}",
    ),
    "engine": Rule(
        lambda job: "trt" in job.export.export,
        "an option of engines, and no engine is built",
        "`--export trt` builds one",
    ),
    "onnx-file": Rule(
        lambda job: any(kind != "pt2" for kind in job.export.export),
        "no ONNX file is written",
        "it goes with `--export onnx`, `openvino` or `trt`",
    ),
    "onnxruntime": Rule(
        lambda job: any(
            item.format == "onnx" and item.target.runtime == "onnxruntime"
            for item in job.export.requests
        ),
        "it times ONNX files in onnxruntime, and none is written for it",
        "export `onnx` for `ort-x86` or `ort-arm`; other runtimes time their engines themselves",
    ),
    "judged": Rule(
        lambda job: job.policy.verify != "off" and bool(job.export.export),
        "nothing is judged",
        "leave out `--verify off`, and write a file",
    ),
}
