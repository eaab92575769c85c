"""`normfold quantize`: convert into integers with everything that quantising can be told."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from normfold.cli import options as opt
from normfold.cli.show import emit, progress, warn_pickle

_INPUTS, _FORMATS, _PASSES = "Ranges", "Formats by layer", "Before and after"


class Source(StrEnum):
    """Where the ranges of activations come from."""

    auto = "auto"
    distilled = "distilled"
    patches = "patches"
    zeroq = "zeroq"
    analytic = "analytic"


def quantize(
    model: opt.Model,
    scheme: Annotated[
        opt.Scheme,
        typer.Option(help="Weights and activations, or weights alone, or inputs at run time."),
    ] = opt.Scheme.int8,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="onnx|trt", help="Format; repeatable. [default: onnx]"),
    ] = None,
    target: Annotated[
        str, typer.Option(help="What the ONNX file is for: ort-x86, ort-arm, trt, trt-rtx.")
    ] = "ort-x86",
    to: Annotated[
        opt.Exact | None,
        typer.Option(
            "--to", help="Preset that comes first. [default: rmsnorm with --rotate, else folded]"
        ),
    ] = None,
    output: opt.Output = Path("out"),
    source: Annotated[
        Source,
        typer.Option(
            help="Without data: inputs distilled from the norms' statistics together with the statistics "
            "themselves (auto), or one of them alone.",
            rich_help_panel=_INPUTS,
        ),
    ] = Source.auto,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Samples for the ranges: .npz, .npy, .pt, .safetensors, an image folder, or pkg.mod:loader.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="At most so many samples. [default: 256]", rich_help_panel=_INPUTS
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=0, help="Inputs to distil; 0: 64, or 16 above 128 pixels.", rich_help_panel=_INPUTS
        ),
    ] = 0,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of their distillation.", rich_help_panel=_INPUTS)
    ] = 25,
    flip: Annotated[
        bool, typer.Option(help="Mirror them every other step.", rich_help_panel=_INPUTS)
    ] = True,
    crop: Annotated[
        int,
        typer.Option(min=0, help="Shift them by up to so many pixels.", rich_help_panel=_INPUTS),
    ] = 0,
    blur: Annotated[
        float,
        typer.Option(min=0.0, help="Deviation of their Gaussian blur.", rich_help_panel=_INPUTS),
    ] = 0.0,
    pixels: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Smallest and largest value of valid inputs; known for timm's networks.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    save_distilled: Annotated[
        Path | None,
        typer.Option(
            help="File (.npz) for the inputs that were distilled.", rich_help_panel=_INPUTS
        ),
    ] = None,
    target_size: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Bytes that the weights may take, or their share of what 8 bits take (up to 1).",
            rich_help_panel=_FORMATS,
        ),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Milliseconds that the example inputs may take in onnxruntime on this machine.",
            rich_help_panel=_FORMATS,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Points of top-1 (agreement without labels) that may be lost; else exit 1.",
            rich_help_panel=_FORMATS,
        ),
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="2, 4 or 8 bits for every layer, as in the ZeroQ paper; stored in 8.",
            rich_help_panel=_FORMATS,
        ),
    ] = False,
    activation_bits: Annotated[
        int,
        typer.Option(
            min=2,
            max=8,
            help="Below 8: simulated, and nothing is written.",
            rich_help_panel=_FORMATS,
        ),
    ] = 8,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize", help="Equalise channels across layers (exact).", rich_help_panel=_PASSES
        ),
    ] = False,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate", help="Rotate streams that RMSNorms read (exact).", rich_help_panel=_PASSES
        ),
    ] = False,
    migrate: Annotated[
        bool,
        typer.Option(
            "--migrate",
            help="Move scales from behind norms into weights (exact).",
            rich_help_panel=_PASSES,
        ),
    ] = False,
    correct_bias: Annotated[
        bool,
        typer.Option(
            "--correct-bias", help="Take mean errors out of biases.", rich_help_panel=_PASSES
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE",
            help="What puts weights on grids, as `quantize-weights{bits=6 rounding=squant}`.",
            rich_help_panel=_PASSES,
        ),
    ] = None,
    vnni: Annotated[
        bool,
        typer.Option(help="Off: x86 without VNNI, weights in 7 bits.", rich_help_panel=_PASSES),
    ] = True,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    dynamic: opt.Dynamic = None,
    seed: opt.Seed = 0,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda",
            help="Where ranges are found. [default: cuda where there is one]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every site.")] = False,
    as_json: opt.Json = False,
) -> int:
    """Fold a trained network, find its ranges without data, and write what integer kernels run."""
    import normfold
    from normfold.steps.quantize import Quantization, Recipe

    warn_pickle(trust_pickle)
    options = Quantization(
        scheme=scheme.value,
        source=source.value,
        data=data,
        recipe=Recipe(images=images, steps=steps, seed=seed, flip=flip, crop=crop, blur=blur),
        pixels=pixels,
        weights=weights,
        vnni=vnni,
        target_size=target_size,
        target_latency=target_latency,
        max_drop=max_drop,
        simulate=simulate,
        activation_bits=activation_bits,
        equalize=equalize,
        rotate=rotate,
        migrate=migrate,
        correct_bias=correct_bias,
        save_distilled=save_distilled,
        limit=limit,
        device=device,
        trust_modules=trust_module or (),
    )
    preset = to.value if to is not None else "rmsnorm" if rotate else "folded"
    with progress() as say:
        result = normfold.convert(
            model,
            preset,
            export=export or ("onnx" if activation_bits == 8 else None),
            output=output,
            batch=batch.value,
            dynamic=dynamic or (),
            seed=seed,
            dialect=target,
            quantization=options,
            progress=say,
            **opt.loading(factory, inputs, trust_module, trust_pickle),
        )
    emit(result.report, as_json, verbose)
    return 0 if result.ok else 1
