"""Options that several commands share, declared once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Batch(StrEnum):
    """Is axis 0 of the inputs free?"""

    dynamic = "dynamic"
    static = "static"


class Precision(StrEnum):
    """Of weights and activations."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Builder(StrEnum):
    """What builds engines."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class HardwareCompatibility(StrEnum):
    """GPUs besides the one that an engine is built on."""

    none = "none"
    ampere = "ampere+"
    same_cc = "same-cc"


class Offline(StrEnum):
    """Norms whose statistics are constants at inference."""

    prepbn = "prepbn"
    repbn = "repbn"
    bn = "bn"
    un = "un"
    affine = "affine"


class Exact(StrEnum):
    """Presets that keep the function."""

    folded = "folded"
    rmsnorm = "rmsnorm"
    crmsnorm = "crmsnorm"
    baked = "baked"


class Scheme(StrEnum):
    """What becomes integers."""

    int8 = "int8"
    int8_dynamic = "int8-dynamic"
    int8_weights = "int8-weights"
    int4_weights = "int4-weights"


class VerifyMode(StrEnum):
    """When to judge."""

    final = "final"
    each = "each"
    off = "off"


MODEL_HELP = (
    "A pickled module (.pt), a state dict (.pt, .safetensors) with --model, a .pt2 program, "
    "a Hugging Face folder, timm:NAME, or pkg.mod:factory."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Factory = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PKG.MOD:FACTORY",
        help="Builds the network that a state dict belongs to.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:SHAPE[:DTYPE]",
        help="Example input, as x:1x3x224x224[:f32]; repeatable.",
    ),
]
TrustModule = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-module",
        metavar="PKG",
        help="Allow a pickle to name classes of this package; repeatable.",
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Unpickle without an allow-list: runs whatever the file says."
    ),
]
BatchOption = Annotated[
    Batch, typer.Option("--batch", help="Capture with a dynamic or a fixed batch.")
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="NAME:AXIS[=MIN..OPT..MAX]",
        help="Another axis that stays dynamic, as input_ids:1; the sizes are what an engine is built for, "
        "as x:0=1..8..64; repeatable.",
    ),
]
_ENGINE = "TensorRT engines"
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="Of weights and activations in the files; as captured when not given. Inputs and outputs stay.",
        show_default=False,
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-fp32",
        metavar="PATTERN",
        help="Module paths, ops or nodes that stay in float32 (`blocks.3.*`, `softmax`); repeatable.",
    ),
]
HalfBudget = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Relative error that half precision may cost. [fp16: 0.02, bf16: 0.1]"
    ),
]
BuilderOption = Annotated[
    Builder,
    typer.Option(
        "--builder",
        help="auto: TensorRT where it is installed and there is a GPU, else TensorRT-RTX.",
        rich_help_panel=_ENGINE,
    ),
]
GpuArch = Annotated[
    str | None,
    typer.Option(
        "--gpu-arch",
        metavar="SM,...",
        help="GPUs that a TensorRT-RTX engine is for, as sm89,sm120. [default: all from Ampere on]",
        rich_help_panel=_ENGINE,
    ),
]
Workspace = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="MIB", help="Memory that tactics may use.", rich_help_panel=_ENGINE
    ),
]
TimingCache = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FOLDER",
        help="Keep TensorRT's timings there, by version and GPU.",
        rich_help_panel=_ENGINE,
    ),
]
VersionCompatible = Annotated[
    bool,
    typer.Option(
        "--version-compatible",
        help="The engine runs in newer TensorRT versions too.",
        rich_help_panel=_ENGINE,
    ),
]
HardwareOption = Annotated[
    HardwareCompatibility,
    typer.Option(
        "--hardware-compatible",
        help="The engine runs on other GPUs too.",
        rich_help_panel=_ENGINE,
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the generated inputs.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Passes = Annotated[
    str | None,
    typer.Option(
        "--passes",
        "-p",
        metavar="TEXT",
        help="Pipeline text instead of a preset: `a,b{option=value}`.",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="PRESET",
        help="What to make: folded, rmsnorm, crmsnorm, baked; or, trained on --data: prepbn, repbn, bn, un, "
        "affine.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the artefacts and the report.")
]
_TRAINING = "Training (--to prepbn, repbn, bn, un, affine)"
_DATA = typer.Option(
    "--data",
    metavar="FILE|FOLDER|PKG.MOD:LOADER",
    help="Samples: .npz, .npy, .pt, .safetensors, a folder of images, or a loader; labels optional.",
    rich_help_panel=_TRAINING,
)
RequiredData = Annotated[str, _DATA]
Data = Annotated[str | None, _DATA]
Quantize = Annotated[
    Scheme | None,
    typer.Option(
        "--quantize",
        help="Write integers; `normfold quantize` has more options. With --data ranges are measured on it.",
    ),
]
Norms = Annotated[
    list[str] | None,
    typer.Option(
        "--norms",
        metavar="PATTERN",
        help="LayerNorms to replace, by module path; repeatable. [default: all]",
        rich_help_panel=_TRAINING,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0.0,
        metavar="POINTS",
        help="Replace only the cheapest of them, as many as (95 % sure) lose at most so much before any training.",
        rich_help_panel=_TRAINING,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        min=0.0,
        metavar="POINTS",
        help="What may be lost on held-out samples: points of top-1, of agreement where there are no labels, or "
        "of --metric; exit 1 beyond.",
        rich_help_panel=_TRAINING,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="PKG.MOD:FN",
        help="fn(outputs, labels) on the held-out samples: reported, and what --max-drop judges; more is better.",
        rich_help_panel=_TRAINING,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Optimizer steps. [default: four epochs, at least 300]",
        rich_help_panel=_TRAINING,
    ),
]
Rate = Annotated[
    float, typer.Option("--rate", help="Peak learning rate.", rich_help_panel=_TRAINING)
]


def loading(
    factory: str | None,
    inputs: list[str] | None,
    trust_module: list[str] | None,
    trust_pickle: bool,
) -> dict[str, Any]:
    """Keyword arguments of the facade's loading functions."""
    return {
        "factory": factory,
        "inputs": inputs or (),
        "trust_modules": trust_module or (),
        "trust_pickle": trust_pickle,
    }


def engine(
    builder: Builder,
    gpu_arch: str | None,
    workspace: int | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: HardwareCompatibility,
) -> Any:
    """The facade's options of an engine."""
    from normfold.targets.deploy import EngineOptions

    return EngineOptions(
        backend=builder.value,
        gpu_arch=tuple(
            part.strip().lower() for part in (gpu_arch or "").split(",") if part.strip()
        ),
        workspace=workspace,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible.value,
    )


def quantization(
    scheme: Scheme | None, data: str | None, trust_module: list[str] | None, seed: int
) -> Any:
    """The facade's options of quantising; None where it was not asked for."""
    if scheme is None:
        return None
    from normfold.steps.quantize import Quantization, Recipe

    recipe = Recipe(steps=25, seed=seed)
    return Quantization(scheme.value, data=data, recipe=recipe, trust_modules=trust_module or ())


def training(
    data: str | None,
    norms: list[str] | None,
    budget: float | None,
    max_drop: float | None,
    metric: str | None,
    trust_module: list[str] | None,
    steps: int | None,
    rate: float,
    seed: int,
) -> Any:
    """The facade's options of training; None without data."""
    if data is None:
        return None
    from normfold.steps.train import Recipe, Training

    return Training(
        data,
        norms or (),
        budget,
        Recipe(steps=steps, rate=rate, seed=seed),
        max_drop,
        metric,
        trust_modules=trust_module or (),
    )
