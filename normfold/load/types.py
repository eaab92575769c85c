"""What loading a model gives: the module, example inputs, and where both came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from normfold.load.lacking import Lacking
from normfold.load.nested import Call


@dataclass(frozen=True)
class Wanted:
    """One example input, before it is drawn.

    Attributes:
        name: of the parameter of ``forward``; None where only the position is known.
        shape: with the batch in front.
        high: integers are drawn from ``[0, high)``; 0 stands for floats. A mask is drawn as one (`draw_mask`).
        free: axes besides the batch that stay free where the network can be captured so, such as a length.
    """

    name: str | None
    shape: tuple[int, ...]
    high: int = 0
    free: tuple[int, ...] = ()


@dataclass
class Loaded:
    """A network ready to be captured.

    Attributes:
        module: in eval mode and private to the compiler; parameter dtypes as they were stored.
        args: example inputs for ``module(*args, **kwargs)``, positional part.
        kwargs: the keyword part.
        source: a sentence that says what was loaded from where.
        inputs_from: what the example inputs were derived from.
        notes: things that the user should know (train mode, stripped prefixes, random weights).
        exported: the program itself when the model was a ``.pt2`` file.
        dynamic: per flat user input of ``exported``, its symbolic dimensions by name
            (``({0: "s77"},)``); ``None`` for anything else, where the capture chooses.
        free: axes that stay free besides the batch where the network can be captured so, by input name.
        axes: axes that must stay free, by input name.
        trials: calls at other sizes on which a verdict is based, too.
        part: path of the part of a network that ``module`` is; None of a whole one.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str
    inputs_from: str
    notes: list[str] = field(default_factory=list)
    exported: ExportedProgram | None = None
    dynamic: tuple[dict[int, str], ...] | None = None
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)
    axes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    trials: list[Call] = field(default_factory=list)
    part: str | None = None
    _training: Mapping[nn.Module, bool] = field(default_factory=dict, repr=False)

    def restore(self) -> None:
        """Give a caller's module its train/eval flags back; does nothing when it was copied."""
        for module, flag in self._training.items():
            module.training = flag


@dataclass
class Found:
    """A module before example inputs were chosen for it."""

    module: nn.Module
    source: str
    notes: list[str] = field(default_factory=list)
    inputs: tuple[tuple[Any, ...], dict[str, Any], str] | None = None
    exported: ExportedProgram | None = None
    dynamic: tuple[dict[int, str], ...] | None = None
    image_size: tuple[int, int] | None = None
    axes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    input_names: tuple[str, ...] = ()  # that the folder's tokenizer gives
    lacking: Lacking | None = (
        None  # weights that are NaN until no output is known to depend on them
    )
