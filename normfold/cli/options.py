"""Options that several commands share, declared once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class Batch(StrEnum):
    """Is axis 0 of the inputs free?"""

    dynamic = "dynamic"
    static = "static"


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
        metavar="NAME:AXIS",
        help="Another axis that stays dynamic, as input_ids:1; repeatable.",
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
    typer.Option("--to", metavar="PRESET", help="What to make: folded, rmsnorm, crmsnorm, baked."),
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
