"""What a runtime is fed: tensors by the names of a file's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
