"""What a runtime is fed: tensors by the names of a file's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def in_its_types(
    run: Callable[[Sequence[Tensor]], list[Tensor]], signature: Signature
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A run of a file whose floats may be of other types than those of the network that it is judged by."""
    types = [DTYPES.get(kind) for _, _, kind in signature]

    def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
        both = dtype is not None and dtype.is_floating_point and x.is_floating_point()
        return x.to(dtype) if both else x

    def fed(inputs: Sequence[Tensor]) -> list[Tensor]:
        if len(inputs) != len(types):
            return run(inputs)  # which says what it takes
        return run([cast(x, dtype) for x, dtype in zip(inputs, types, strict=True)])

    return fed
