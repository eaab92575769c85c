"""What a result must satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from normfold.job.option import Options, option


@dataclass(frozen=True)
class Policy(Options):
    """When to judge, and by what.

    Integer files are judged by agreement with the float original, by the signal-to-noise ratio, and by that of the
    simulation that promised it: see `normfold.report.Budget` for the default; ``max_drop`` replaces it.
    """

    GROUP: ClassVar[str] = "Policy"

    verify: Literal["final", "each", "strict", "off"] = option(
        "final",
        "Judge at the end, after every pass, at the end at full sizes and beside the original's own export "
        "(strict), or never.",
    )
    tries: tuple[str, ...] = option(
        (),
        "Judge at this size, too, of what is dynamic: `x:1x3x128x96`; repeatable.",
        "--try",
        metavar="NAME:SHAPE",
        when="judges",
    )
    require: tuple[str, ...] = option(
        (),
        "Fail (exit 1) otherwise: sites that a pass rewrote (`fold-affine>=20`), norms of a kind or sites that "
        "are left (`batch-norm==0`, `encoder.*==0`), ops of the file (`LayerNormalization==0`), `size` in MB, "
        "`opset`, the share in `integers`, `time` relative to the original's; repeatable.",
        metavar="NAME>=N",
    )
    require_judged: bool = option(
        False, "Exit 3 where a file cannot be run on this machine.", when="judged"
    )
    max_error: float | None = option(
        None,
        "Relative error that approximate passes may cost: |y - r| / |r| of every output.",
        metavar="X",
        low=0,
        when="judges",
    )
    max_drop: float | None = option(
        None,
        "What training or quantising may lose: points of top-1, of agreement where there are no labels, or of "
        "--metric; exit 1 beyond.",
        metavar="POINTS",
        low=0,
        when="approximate",
    )
    metric: str | None = option(
        None,
        "fn(outputs, labels) on samples that are not trained on: reported, and what --max-drop judges; more is "
        "better.",
        metavar="PKG.MOD:FN",
        when="samples-given",
        named=True,
    )
    half_budget: float | None = option(
        None,
        "Relative error that half precision may cost, beside --max-error.",
        low=0,
        when="half",
        default_text="fp16 0.02, bf16 0.1",
    )
    keep_if_faster: bool | None = option(
        None,
        "Write the original's own export instead, unless the result is faster (onnxruntime, CPU). int8 without "
        "it: what is slower in integers stays in floats; --no-keep-if-faster: nothing is timed.",
        when="onnxruntime",
    )
