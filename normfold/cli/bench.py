"""The command `bench`: which of two networks is faster on this machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from normfold.cli import options as opt
from normfold.cli.show import console, progress, warn_pickle


class Runtime(StrEnum):
    """What runs the networks."""

    ort = "ort"
    torch = "torch"
    trt = "trt"


def bench(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="An .onnx or .engine file, or any MODEL.", show_default=False
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="The other: a file, or any MODEL.", show_default=False),
    ],
    runtime: Annotated[
        Runtime,
        typer.Option(
            "--runtime",
            help="onnxruntime (a MODEL is exported as it is), torch, or TensorRT (engines).",
        ),
    ] = Runtime.ort,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of A B B A, at least.")] = 20,
    seconds: Annotated[float, typer.Option(min=0, help="Time to measure for, at least.")] = 5.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within one op; else the runtime's choice.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="onnxruntime's execution provider. [default: cpu]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Of torch. [default: cuda where there is one]"),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Through torch.compile, with --runtime torch.")
    ] = False,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Size of a free first axis.")
    ] = 1,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> int:
    """Time two networks in turn on this machine, and say whether one is faster."""
    from normfold.judge.bench import bench as facade
    from normfold.report import json_text
    from normfold.report.text import print_timing

    warn_pickle(trust_pickle)
    with progress() as say:
        timing = facade(
            a,
            b,
            runtime.value,
            batch=batch,
            rounds=rounds,
            seconds=seconds,
            threads=threads,
            provider=provider,
            device=device,
            compiled=compiled,
            seed=seed,
            progress=say,
            **opt.loading(factory, inputs, trust_module, trust_pickle),
        )
    if as_json:
        typer.echo(json_text(timing.to_dict()))
    else:
        print_timing(timing, console())
    return 0
