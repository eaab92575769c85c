"""Errors of one run against another: relative to the largest magnitude of an output, of its row in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.judge.inputs import Case
from normfold.report import Check, OutputCheck

FACTOR = 4.0
ULPS = 16.0
EXCUSED = 1e-3  # the largest error of a runtime that excuses the same error of a result

Outputs = list[Tensor]

# A value below it stands for minus infinity, as in logits that are masked; what stands for it in half precision
# is below the other.
_MASKED, _STANDS_FOR = -1e8, -1e4


def tensors(outputs: Any) -> Outputs:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Own:
    """What the original itself makes of a case, in the types of the result: it says what rounding costs.

    Attributes:
        runs: in torch first, then on inputs that differ in the last bit.
        plain: of its own export in the runtime of the result; None where that was not made.
        rounded: the reference where every op errs as kernels do; what these runs err by, a file may err by too.
        undecided: elements that one of them makes another answer of; None where that was not asked.
    """

    runs: tuple[Tensor, ...] = ()
    plain: Tensor | None = None
    rounded: tuple[Tensor, ...] = ()
    undecided: Tensor | None = None


def compare(
    name: str,
    case: Case,
    expected: Tensor,
    got: Tensor,
    own: Own,
    tolerance: float | None,
    size: float = 0.0,
    typed: bool = False,
) -> list[OutputCheck]:
    """The checks of one output: one for each part of a case that is judged by itself.

    Args:
        tolerance: None for four times the error of the original and a few ulps.
        size: at which the op that makes the output computes, where its results may be smaller.
        typed: floats are of the original's type, which they need not be in a file.
    """
    other = ""
    known = own.runs[0].dtype if typed and own.runs else None
    if expected.shape != got.shape:
        other = f"shape {tuple(got.shape)}"
    elif not _is_of_type(got, expected, known):
        other = f"type {str(got.dtype).removeprefix('torch.')}"
    if other:
        return [OutputCheck(name, other, 0.0, float("inf"), 0.0, float("inf"))]
    checks = []
    for label, part in parts(case, expected):
        left_out = None if own.undecided is None else own.undecided[part]
        reference = expected[part]
        of = partial(largest_error, reference, size=size, left_out=left_out)
        error, absolute = of(got[part])
        mine = own.runs[0] if own.runs else got
        exact = not _is_real(mine)
        unit = 0.0 if exact else torch.finfo(mine.dtype).eps
        errors = [of(run[part])[0] for run in own.runs]
        # what loses half of the digits by one bit is a jump, not rounding: no excuse for the result
        baseline = max([*errors[:1], *(e for e in errors[1:] if e < unit**0.5)], default=0.0)
        allowed = FACTOR * baseline + ULPS * unit if tolerance is None else tolerance
        if own.plain is not None and own.plain.shape == expected.shape:
            runtime = of(own.plain[part])[0]
            baseline = max(baseline, min(runtime, EXCUSED))
            allowed = max(allowed, min(FACTOR * runtime + ULPS * unit, EXCUSED))
        if own.rounded:
            rounding = min(max(of(run[part])[0] for run in own.rounded), EXCUSED)
            baseline, allowed = max(baseline, rounding), max(allowed, rounding)
        # where the original itself overflows or is NaN there is nothing to compare with
        if not baseline < float("inf") or _undefined(reference) or is_whole(left_out):
            allowed = float("inf")
        if allowed == float("inf"):
            error = 0.0
        checks.append(OutputCheck(name, label, baseline, error, allowed, absolute))
    return checks


def checked(
    check: Check,
    reference: Sequence[Outputs],
    notes: Sequence[str],
    certified: bool = False,
    tied: Sequence[str] = (),
) -> Check:
    """A check with the notes on what it leaves out; failed where that is all and it is not ``certified``.

    Args:
        tied: names of outputs that rounding decides on every input.
    """
    found, notes = list(check.outputs), list(filter(None, dict.fromkeys(notes)))
    dropped = [item for item in found if item.tolerance == float("inf")]
    if dropped and not notes:
        spoilt = len({item.output for item in dropped})
        notes.append(f"{spoilt} outputs overflow or are NaN in the original: not judged")
    nan = {place for case in reference for place, y in enumerate(case) if torch.isnan(y).any()}
    if nan and not notes:
        notes.append(f"{len(nan)} outputs hold NaN in the original: not judged there")
    if dropped and len(dropped) == len(found):  # a verdict on nothing is none
        notes = [
            "every output overflows, is NaN or rounding alone in the original: nothing to judge"
        ]
    if dropped and len(dropped) == len(found) and not certified:
        found.append(OutputCheck("*", "every input", 0.0, float("inf"), 0.0, float("inf")))
    elif tied and not certified:
        notes.append(f"rounding alone decides {', '.join(tied)}: nothing of that can be judged")
        found += [OutputCheck(x, "every input", 0.0, float("inf"), 0.0, float("inf")) for x in tied]
    return replace(check, outputs=tuple(found), note="; ".join(notes))


def _is_of_type(got: Tensor, expected: Tensor, known: torch.dtype | None) -> bool:
    """Integers and booleans have the type of the reference, floats that which is ``known``, or any."""
    if not _is_real(expected):
        return got.dtype == expected.dtype
    return (
        _is_real(got) and got.is_complex() == expected.is_complex() and known in (None, got.dtype)
    )


def _is_real(y: Tensor) -> bool:
    """True for floats and complex numbers, which may be of another width in a file."""
    return y.is_floating_point() or y.is_complex()


def is_whole(left_out: Tensor | None) -> bool:
    """True where nothing is left to compare."""
    return left_out is not None and left_out.numel() > 0 and bool(left_out.all())


def owned(count: int, runs: Sequence[Outputs], plain: Outputs) -> list[Own]:
    """For each output what the original itself makes of a case."""
    fits = len(plain) == count
    return [
        Own(tuple(outputs[place] for outputs in runs), plain[place] if fits else None)
        for place in range(count)
    ]


def undecided(case: Case, reference: Tensor, others: Sequence[Tensor], size: float = 0.0) -> Tensor:
    """Elements that are another answer, not another rounding, in one of some runs of the same network.

    That is what they move by more than may be excused in one of a few runs more: `FACTOR` times as far.
    """
    found = torch.zeros_like(reference, dtype=torch.bool)
    for other in others:
        if other.shape != reference.shape:
            return torch.ones_like(found)
        for _, part in parts(case, reference):
            mine, yours = reference[part], other[part]
            apart = mine != yours
            if _is_real(reference):
                far = (mine - yours).abs() > EXCUSED / FACTOR * max(_size_of(mine), size)
                apart = far | (mine.isnan() != yours.isnan())
            found[part] |= apart
    return found


def parts(case: Case, expected: Tensor) -> list[tuple[str, Any]]:
    """What is judged by itself: the rows of a batch, or the whole."""
    rows = case.rows
    if rows is None or expected.dim() == 0 or expected.shape[0] != len(rows):
        return [(case.name, ...)]
    return [(row, index) for index, row in enumerate(rows)]


def _undefined(reference: Tensor) -> bool:
    return reference.numel() > 0 and bool(torch.isnan(reference).all())


def largest_error(
    reference: Tensor, result: Tensor, size: float = 0.0, left_out: Tensor | None = None
) -> tuple[float, float]:
    """Largest error relative to the largest magnitude of the reference, and the largest error itself.

    Args:
        size: relative to that, where the reference is smaller.
        left_out: elements that do not count.
    """
    if reference.numel() == 0:
        return 0.0, 0.0
    counts = torch.ones_like(reference, dtype=torch.bool) if left_out is None else ~left_out
    if not _is_real(reference):
        wrong = float(((reference != result) & counts).double().max())
        return wrong, wrong
    wide = torch.complex128 if reference.is_complex() else torch.float64
    # equal infinities, as in masks; NaN where the reference has it, as in 0 / 0
    same = (reference == result.to(wide)) | torch.isnan(reference) | ~counts
    difference = torch.where(same, 0.0, (reference - result.to(wide)).abs())
    absolute = float(difference.max())
    scale = max(_size_of(reference), size)
    return (absolute / scale if scale > 0 else absolute), absolute


def _size_of(reference: Tensor) -> float:
    finite = reference.abs()[torch.isfinite(reference.abs())]
    return float(finite.max()) if finite.numel() else 0.0


def last_bit(leaf: Any, random: torch.Generator) -> Any:
    """A tensor of which every number is another in its last bit; zeros and integers stay."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    sign = torch.randint(0, 2, leaf.shape, generator=random).to(leaf) * 2 - 1
    return leaf * (1 + sign * torch.finfo(leaf.dtype).eps)


def distance(reference: Tensor, result: Tensor) -> tuple[float, float]:
    """|result - reference| / |reference|, or the share of integers that differ; and the largest difference.

    Infinite where one of them is NaN or infinite and the other is not.
    """
    if reference.is_complex():
        reference, result = torch.view_as_real(reference), torch.view_as_real(result)
    if not reference.is_floating_point():
        wrong = float((reference != result).double().mean()) if reference.numel() else 0.0
        return wrong, wrong
    expected, got = reference.double(), result.double()
    masked = (expected <= _MASKED) & (got <= _STANDS_FOR)
    same = (expected == got) | expected.isnan() | masked  # the original's own NaN is not judged
    difference, known = (expected - got)[~same], expected[expected.isfinite() & ~masked]
    if not bool(difference.isfinite().all()):
        return float("inf"), float("inf")
    error = float(difference.norm()) / (float(known.norm()) or 1.0)
    return error, float(difference.abs().max()) if difference.numel() else 0.0


def unit_of(y: Tensor) -> float:
    """The distance of 1 to the next number of a type; of float32 for integers."""
    return torch.finfo(y.dtype).eps if _is_real(y) else torch.finfo(torch.float32).eps
