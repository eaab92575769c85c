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
_WHOLE = ("i32", "i64", "bool")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_SPEC = re.compile(
    rf"^(?:([A-Za-z_]\w*(?:\.\w+)*):)?(\d+(?:x\d+)*)(?::(\w+))?(?:\[({_NUMBER})\.\.({_NUMBER})\])?$"
)


@dataclass(frozen=True)
class Spec:
    """One example input.

    Attributes:
        name: of a parameter of ``forward``, or of something in it: ``batch.image``, ``states.0``.
        dtype: None where the model decides.
        range: least and largest value; None where the model decides.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    text: str = ""
    range: tuple[float, float] | None = None


def parse(texts: Sequence[str]) -> list[Spec]:
    """Parse ``[name:]1x3x224x224[:dtype][[low..high]]`` texts.

    Raises:
        UsageError: malformed text, an unknown dtype, a zero size, an empty range, or a name given twice.
    """
    specs: list[Spec] = []
    for text in texts:
        match = _SPEC.match(text.strip())
        if match is None:
            raise UsageError(
                f"`--input {text}` is not of the form `name:1x3x224x224`",
                hint="sizes joined by `x`, then optionally a dtype: `x:1x3x224x224:f16` "
                "or `input_ids:1x16:i64`, and the range of its values: `mask:1x16:i64[0..1]`; the name may be "
                "left out, and leads into a dictionary or a tuple: `batch.image:1x3x64x64`",
            )
        name, sizes, dtype, low, high = match.groups()
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(
                f"unknown dtype `{dtype}` in `--input {text}`", hint=f"one of {', '.join(DTYPES)}"
            )
        shape = tuple(int(size) for size in sizes.split("x"))
        if 0 in shape:
            raise UsageError(f"`--input {text}` has a size of zero")
        if name is not None and any(spec.name == name for spec in specs):
            raise UsageError(f"`--input {name}` is given twice")
        limits = None if low is None else (float(low), float(high))
        if limits is not None and (
            limits[0] > limits[1] or (dtype in _WHOLE and not all(x.is_integer() for x in limits))
        ):
            raise UsageError(
                f"the range of `--input {text}` is empty, or not one of integers",
                hint="write `[least..largest]`, both included: `[0..1]`",
            )
        specs.append(Spec(name, shape, DTYPES.get(dtype or ""), text, limits))
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


def suffix(dtype: torch.dtype) -> str:
    """``:i64`` behind the shape in a text; nothing for float32."""
    names = {known: text for text, known in DTYPES.items()}
    return "" if dtype == torch.float32 or dtype not in names else f":{names[dtype]}"


def draw_spec(
    spec: Spec,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    high: int = 2,
    device: torch.device | None = None,
    keeps: bool = True,
) -> torch.Tensor:
    """An input as its spec says: in its range, as a mask if it is called one, else as `draw`.

    ``keeps`` is what a mask's ones mean: what they stand at is kept, or is left out.
    """
    if spec.range is not None:
        low, most = spec.range
        if dtype.is_floating_point:
            made = (
                torch.rand(spec.shape, generator=generator, dtype=torch.float32) * (most - low)
                + low
            )
        else:
            made = torch.randint(int(low), int(most) + 1, spec.shape, generator=generator)
        return made.to(dtype=dtype, device=device)
    if is_mask(spec.name, dtype):
        return mask(spec.shape, dtype, keeps).to(device=device)
    return draw(spec.shape, dtype, generator, high=high, device=device)


def is_mask(name: str | None, dtype: torch.dtype) -> bool:
    """True for integers and bools that are called a mask."""
    return "mask" in (name or "").lower() and not dtype.is_floating_point


def mask(shape: Sequence[int], dtype: torch.dtype, keeps: bool = True) -> torch.Tensor:
    """A padding mask as tokenizers make it: the first row is whole, the others end earlier and earlier.

    Args:
        shape: rows first, positions last.
        keeps: 1 stands at what is there, and 0 at the padding; False is the other way round.
    """
    made = torch.ones(tuple(shape), dtype=torch.int64)
    if len(shape) > 1:
        length = shape[-1]
        for row in range(1, shape[0]):
            made[row, ..., max(1, length - 1 - (row - 1) * max(1, length // 3) % length) :] = 0
    return (made if keeps else 1 - made).to(dtype)
