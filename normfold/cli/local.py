"""Options that belong to commands and not to jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from normfold.job.option import Options, option


@dataclass(frozen=True)
class Printing:
    """How a command prints."""

    verbose: bool = option(False, "List every site.", "--verbose", "-v", when="always")
    as_json: bool = option(False, "Print JSON on stdout instead of tables.", "--json")


@dataclass(frozen=True)
class Configured:
    """Where options come from besides the command line."""

    config: Any = option(
        None,
        "Read options from this file; it may set what a found normfold.toml may not.",
        metavar="FILE",
        when="always",
    )


@dataclass(frozen=True)
class Inspection:
    """What `inspect` prints."""

    graph: bool = option(False, "Print the captured graph instead.")
    spaces: bool = option(False, "Print the feature spaces and their symmetries instead.")


@dataclass(frozen=True)
class Comparison:
    """What `verify` compares besides outputs."""

    layers: bool = option(
        False, "Compare what leaves each module too, and name the first that is over its limit."
    )


@dataclass(frozen=True)
class Budgets:
    """What `verify` and `bisect` allow a result that is not exact; both add up."""

    max_error: float | None = option(
        None,
        "Relative error that approximate passes may cost: |y - r| / |r| of every output.",
        metavar="X",
        low=0,
    )
    half_budget: float | None = option(
        None,
        "Relative error that half precision in a result may cost, beside --max-error; `convert` allows 0.02 for "
        "float16 and 0.1 for bfloat16.",
        low=0,
        default_text="none: only rounding may differ",
    )


@dataclass(frozen=True)
class Fault:
    """What `bisect` writes."""

    reproducer: Path | None = option(
        None,
        "Folder for the smallest part that fails: both networks, inputs, and how to run them.",
        metavar="FOLDER",
    )


@dataclass(frozen=True)
class Checking(Options):
    """How `check` runs, and what it writes besides."""

    jobs: int = option(
        0,
        "Models at a time; what is timed runs alone.",
        low=0,
        default_text="half of the processors",
    )
    reports: tuple[str, ...] = option(
        (),
        "File for a report of all models: .junit.xml, .sarif, .html, .md or .json; repeatable.",
        "--report",
        metavar="FILE",
        named=True,
    )
    keep: Path | None = option(
        None,
        "Keep what is written, in a folder for each model.",
        "--output",
        "-o",
        metavar="FOLDER",
        default_text="files are judged, and go again",
    )
    only: tuple[str, ...] = option((), "Names of models; repeatable.", metavar="NAME")
    update: bool = option(False, "Write the lock: what is found now is what is expected.")
    cache: Path | None = option(
        None,
        "Where results are kept for the next run.",
        metavar="FOLDER",
        default_text="~/.cache/normfold/check",
    )
    fresh: bool = option(False, "Run every model, whatever is kept of earlier runs.")


@dataclass(frozen=True)
class Begun:
    """What `init` writes."""

    output: Path = option(
        Path("normfold.toml"),
        "File to write; a table is added to one that is there.",
        "--output",
        "-o",
        metavar="FILE",
    )


@dataclass(frozen=True)
class Rendered:
    """What `report` writes."""

    output: Path | None = option(
        None,
        "File to write: .junit.xml, .sarif, .html, .md or .json.",
        "--output",
        "-o",
        metavar="FILE",
        default_text="Markdown on stdout",
    )


@dataclass(frozen=True)
class Bench(Options):
    """How `bench` measures."""

    GROUP: ClassVar[str] = "Measuring"

    runtime: Literal["ort", "torch", "trt"] = option(
        "ort", "onnxruntime (a MODEL is exported as it is), torch, or TensorRT (engines)."
    )
    rounds: int = option(20, "Rounds of A B B A, at least.", low=6)
    seconds: float = option(5.0, "Time to measure for, at least.", low=0)
    threads: int | None = option(
        None, "Threads within one op.", low=1, default_text="the runtime's choice"
    )
    provider: str | None = option(
        None, "Execution provider, with --runtime ort.", metavar="NAME", default_text="cpu"
    )
    device: str | None = option(
        None,
        "Device, with --runtime torch.",
        metavar="cpu|cuda",
        default_text="cuda where there is one",
    )
    compiled: bool = option(
        False, "Use torch.compile, with --runtime torch.", "--compile", named=True
    )
    batch: int = option(1, "Size of a free first axis.", metavar="N", low=1)
