"""`--input x:1x3x224x224:f32`: text to tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from normfold.errors import UsageError

DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
_SPEC = re.compile(r"^(?:([A-Za-z_]\w*):)?(\d+(?:x\d+)*)(?::(\w+))?$")


@dataclass(frozen=True)
class Spec:
    """One example input; ``dtype`` is None where the model decides."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    text: str = ""


def parse(texts: Sequence[str]) -> list[Spec]:
    """Parse ``[name:]1x3x224x224[:dtype]`` texts.

    Raises:
        UsageError: malformed text, an unknown dtype, a zero size, or a name given twice.
    """
    specs: list[Spec] = []
    for text in texts:
        match = _SPEC.match(text.strip())
        if match is None:
            raise UsageError(
                f"`--input {text}` is not of the form `name:1x3x224x224`",
                hint="sizes joined by `x`, then optionally a dtype: `x:1x3x224x224:f16` "
                "or `input_ids:1x16:i64`; the name may be left out",
            )
        name, sizes, dtype = match.groups()
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(
                f"unknown dtype `{dtype}` in `--input {text}`", hint=f"one of {', '.join(DTYPES)}"
            )
        shape = tuple(int(size) for size in sizes.split("x"))
        if 0 in shape:
            raise UsageError(f"`--input {text}` has a size of zero")
        if name is not None and any(spec.name == name for spec in specs):
            raise UsageError(f"`--input {name}` is given twice")
        specs.append(Spec(name, shape, DTYPES.get(dtype or ""), text))
    return specs


def draw(
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    high: int = 2,
    device: torch.device | None = None,
) -> torch.Tensor:
    """A seeded tensor: standard normal, or integers in ``[0, high)``, or coin flips for bool."""
    if dtype == torch.bool:
        made = torch.randint(0, 2, tuple(shape), generator=generator).bool()
    elif dtype.is_floating_point:
        made = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    else:
        made = torch.randint(0, max(1, high), tuple(shape), generator=generator)
    return made.to(dtype=dtype, device=device)
