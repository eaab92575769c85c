"""What to load, and the samples that are measured on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from normfold.errors import UsageError
from normfold.job.option import Options, option, options_of, unknown

MODEL_HELP = (
    "A pickled module (.pt), a state dict (.pt, .safetensors) with --model, a .pt2 program, a Hugging Face "
    "folder, timm:NAME, or pkg.mod:factory."
)


Task = Literal["text-generation-with-past"]


@dataclass(frozen=True)
class Source(Options):
    """The network, its example inputs and the user's samples."""

    GROUP: ClassVar[str] = "What goes in"

    model: Any = None
    factory: str | None = option(
        None,
        "Builds the network that a state dict belongs to.",
        "--model",
        metavar="PKG.MOD:FACTORY",
        named=True,
    )
    part: str | None = option(
        None, "Convert this submodule alone, as `backbone`.", "--module", metavar="PATH"
    )
    key: str | None = option(
        None,
        "Entry of a checkpoint to take, as `state_dict_ema` or `state.ema.params`.",
        metavar="NAME",
        default_text="what fits the network, and of several their average",
    )
    task: Task | None = option(
        None,
        "Write a decoder of transformers with its cache of keys and values as inputs and outputs, for generation "
        "token by token.",
        when="generation",
    )
    inputs: tuple[Any, ...] = option(
        (),
        "Example input, as `x:1x3x224x224`, with `:f16` or `:i64` behind where it is not f32 and `[0..1]` for the "
        "range of its values; `batch.image:1x3x64x64` goes into a dictionary; repeatable.",
        "--input",
        metavar="NAME:SHAPE",
    )
    inputs_from: str | None = option(
        None,
        "Example inputs: .npz, .npy, .pt or .safetensors, by name or in order; or a function that returns them.",
        "--inputs",
        metavar="FILE|PKG.MOD:FN",
        named=True,
    )
    uint8_input: bool = option(
        False,
        "The files take images as bytes, 0 to 255: scaling, mean and deviation go into the first layer.",
    )
    mean: str | None = option(
        None,
        "Mean of images from 0 to 1, one number or one for each channel; with --uint8-input.",
        metavar="X,...",
        when="bytes",
        default_text="what the network says (timm, preprocessor_config.json)",
    )
    std: str | None = option(
        None,
        "Their deviation, likewise.",
        metavar="X,...",
        when="bytes",
        default_text="what the network says",
    )
    batch: Literal["dynamic", "static"] = option("dynamic", "Capture with a free or a fixed batch.")
    dynamic: tuple[str, ...] = option(
        (),
        "Another axis that stays free, as `input_ids:1`; for an engine with the sizes that it is built for, as "
        "`x:0=1..8..64`; repeatable.",
        metavar="NAME:AXIS",
    )
    data: Any = option(
        None,
        "Samples to train or to measure on, and example inputs where none are given: .npz, .npy, .pt, "
        ".safetensors, a folder of images, or a loader pkg.mod:fn; labels optional.",
        metavar="FILE|FOLDER|LOADER",
        when="samples",
    )
    limit: int | None = option(
        None, "At most so many samples.", low=1, when="data", default_text="quantising takes 256"
    )
    seed: int = option(0, "Seed of everything random.", low=0, high=2**63 - 1)
    trust_modules: tuple[str, ...] = option(
        (),
        "Allow a pickle to name classes of this package; repeatable.",
        "--trust-module",
        metavar="PKG",
        named=True,
    )
    trust_pickle: bool = option(
        False, "Unpickle without an allow-list: runs whatever the file says.", named=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "":
            raise UsageError("MODEL is an empty text", hint="`.` is the current folder")
        first = next((text for text in self.dynamic if re.search(r":(\d+,)*0\b", text)), None)
        if self.batch == "static" and first is not None:
            raise UsageError(
                f"`--batch static` and `--dynamic {first}` contradict each other",
                hint="the first axis is the batch, which is free unless it is static: leave one of them out",
            )

    @property
    def normalisation(self) -> tuple[list[float] | None, list[float] | None]:
        """Mean and deviation as numbers, None where they are not given.

        Raises:
            UsageError: another text.
        """
        return _numbers("mean", self.mean), _numbers("std", self.std)

    @property
    def has_inputs(self) -> bool:
        """True where example inputs are given."""
        return len(self.inputs) > 0 or self.inputs_from is not None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Source:
        """The source of options by keyword, of which ``model`` is the network.

        Raises:
            UsageError: an unknown option, or a wrong value.
        """
        known = {item.keyword: item.name for item in options_of(cls)}
        for name in given:
            if name != "model" and name not in known:
                raise unknown(name, known)
        return cls(**{known.get(name, name): value for name, value in given.items()})


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in str(text).split(",")]
    except ValueError:
        raise UsageError(
            f"`--{name}` is not numbers with commas between them",
            found=repr(text),
            hint=f"`--{name} 0.485,0.456,0.406`",
        ) from None
