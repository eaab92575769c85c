"""What a runtime is fed: tensors by the names of a file's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from normfold.errors import UsageError


def by_name(inputs: Sequence[Any] | Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Inputs that are given by name, or in the order of the file.

    Raises:
        UsageError: they are not those of the file.
    """
    if isinstance(inputs, Mapping):
        given: dict[Any, Any] = dict(inputs)
    elif len(inputs) == len(names):
        given = dict(zip(names, inputs, strict=True))
    else:
        given = dict(enumerate(inputs))
    if set(given) != set(names):
        raise UsageError(
            "these are not the inputs of the file",
            found=", ".join(map(str, given)),
            hint=f"it takes {', '.join(names)}",
        )
    return given


Signature = list[tuple[str, tuple[int | str | None, ...], str]]
# the types of tensors as runtimes call them
DTYPES = {
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}


Call = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Fed:
    """A run of a file on flat tensors, whose floats may be of other types than the file's.

    Attributes:
        inputs, outputs: their names, in the file's order.
    """

    run: Call
    signature: Signature
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.signature)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if len(inputs) != len(self.signature):
            return self.run(inputs)  # which says what it takes
        types = [DTYPES.get(kind) for _, _, kind in self.signature]
        return self.run([_cast(x, dtype) for x, dtype in zip(inputs, types, strict=True)])

    def in_order(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Call, str]:
        """This run with inputs and outputs in the order of these names; and a note where they are others.

        Those are taken by their place.
        """
        notes = [
            f"{kind} by their place, not by name: the file's are {', '.join(own)}"
            for kind, names, own in (
                ("inputs", inputs, self.inputs),
                ("outputs", outputs, self.outputs),
            )
            if set(names) != set(own)
        ]
        fed = _places(self.inputs, inputs)
        given = _places(outputs, self.outputs)

        def run(values: Sequence[Tensor]) -> list[Tensor]:
            if len(values) != len(fed):
                return self(values)
            found = self([values[place] for place in fed])
            return [found[place] for place in given] if len(found) == len(given) else found

        return run, "; ".join(notes)


class Session(Protocol):
    """A file that is loaded by a runtime."""

    output_names: tuple[str, ...]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]: ...

    def signature(self) -> Signature: ...


def fed(session: Session) -> Fed:
    """How a loaded file is run."""
    return Fed(session.run, session.signature(), tuple(session.output_names))


def _places(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where each of the wanted names is; its own place where the names are others."""
    if set(wanted) != set(names):
        return list(range(len(wanted)))
    return [names.index(name) for name in wanted]


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    both = dtype is not None and dtype.is_floating_point and x.is_floating_point()
    return x.to(dtype) if both else x
