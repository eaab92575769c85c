"""Optimisation profiles: the least, the usual and the largest size of every dynamic axis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normfold.errors import UsageError

_RANGE = re.compile(r"(\d+)\.\.(?:(\d+)\.\.)?(\d+)")


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: the kernels are chosen for ``usual``."""

    least: int
    usual: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}..{self.usual}..{self.most}"


# of an axis 0 for which nothing was asked
BATCH = Range(1, 8, 64)

Ranges = dict[str, dict[int, Range]]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def parse_dynamic(texts: Sequence[str]) -> tuple[list[str], Ranges]:
    """``NAME:AXIS`` and ``NAME:AXIS=MIN..OPT..MAX`` texts as axes to capture and ranges to build for.

    Raises:
        UsageError: a range that cannot be read, or is empty or out of order.
    """
    axes, ranges = [], Ranges()
    for text in texts:
        axis, equals, sizes = text.partition("=")
        axes.append(axis)
        if not equals:
            continue
        match = _RANGE.fullmatch(sizes)
        name, _, number = axis.rpartition(":")
        numbers = [int(part) for part in match.groups(default="0")] if match else []
        if numbers and match and match[2] is None:  # MIN..MAX: the largest is the usual one
            numbers[1] = numbers[2]
        if not numbers or not number.isdigit() or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            raise UsageError(
                "the sizes of a dynamic axis cannot be read",
                found=f"`{text}`",
                hint="write NAME:AXIS=MIN..OPT..MAX, as in `x:0=1..8..64`",
            )
        ranges.setdefault(name, {})[int(number)] = Range(*numbers)
    return axes, ranges


def profile(
    shapes: Mapping[str, Sequence[int | str | None]],
    examples: Mapping[str, Sequence[int]],
    ranges: Ranges,
    limits: Mapping[str, Mapping[int, int]] | None = None,
) -> tuple[dict[str, Shapes], list[str]]:
    """Least, usual and largest shape of every input with a dynamic axis, and notes on what was assumed.

    Args:
        shapes: of the file's inputs; what is not a number is dynamic.
        examples: shapes that the network was captured with.
        ranges: what was asked for.
        limits: the largest size that the network takes, of axes that have one.

    Raises:
        UsageError: a range for an input or axis that is not there or is fixed, that is beyond what the network
            takes, or that is not the one of another axis of the same size.
    """
    for name, asked in ranges.items():
        for axis in asked:
            shape = shapes.get(name)
            if shape is None or axis >= len(shape) or isinstance(shape[axis], int):
                found = "no such input" if shape is None else f"shape {list(shape)}"
                raise UsageError(
                    f"`{name}:{axis}` is not a dynamic axis of the exported network",
                    found=found,
                    hint=f"its inputs: {', '.join(shapes)}",
                )
            limit = (limits or {}).get(name, {}).get(axis)
            if limit is not None and asked[axis].most > limit:
                raise UsageError(
                    f"the network takes at most {limit} along `{name}:{axis}`",
                    found=f"`{name}:{axis}={asked[axis]}`",
                )
    made, notes = dict[str, Shapes](), []
    named = _by_symbol(shapes, ranges)
    for name, shape in shapes.items():
        if all(isinstance(size, int) for size in shape):
            continue
        sizes = []
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                sizes.append(Range(size, size, size))
                continue
            asked_range = ranges.get(name, {}).get(axis) or named.get(str(size))
            if asked_range is None:
                example = examples[name][axis]
                asked_range = BATCH if axis == 0 else Range(1, example, example)
                notes.append(
                    f"`{name}:{axis}` is built for {asked_range}: "
                    f"`--dynamic {name}:{axis}=MIN..OPT..MAX` sets it"
                )
            sizes.append(asked_range)
        least, usual, most = (
            tuple(getattr(size, part) for size in sizes) for part in ("least", "usual", "most")
        )
        made[name] = (least, usual, most)
    return made, notes


def _by_symbol(
    shapes: Mapping[str, Sequence[int | str | None]], ranges: Ranges
) -> dict[str, Range]:
    """A range that was asked for one input holds for the same symbol in others."""
    found: dict[str, Range] = {}
    for name, asked in ranges.items():
        for axis, sizes in asked.items():
            symbol = shapes[name][axis]
            if symbol is not None and found.setdefault(str(symbol), sizes) != sizes:
                raise UsageError(
                    "axes of the same size have different ranges",
                    found=f"`{name}:{axis}={sizes}`, and {found[str(symbol)]} before",
                )
    return found
