"""Errors of one run against another: relative to the largest magnitude of an output, of its row in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.judge.inputs import Case
from normfold.report import OutputCheck

FACTOR = 4.0
ULPS = 16.0

Outputs = list[Tensor]

# A value below it stands for minus infinity, as in logits that are masked; what stands for it in half precision
# is below the other.
_MASKED, _STANDS_FOR = -1e8, -1e4


def tensors(outputs: Any) -> Outputs:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def compare(
    name: str,
    case: Case,
    expected: Tensor,
    got: Tensor,
    own: Sequence[Tensor],
    tolerance: float | None,
) -> list[OutputCheck]:
    if expected.shape != got.shape:
        return [
            OutputCheck(name, f"shape {tuple(got.shape)}", 0.0, float("inf"), 0.0, float("inf"))
        ]
    checks = []
    for label, part in parts(case, expected):
        error, absolute = largest_error(expected[part], got[part])
        mine = own[0] if own else got
        exact = not (mine.is_floating_point() or mine.is_complex())
        unit = 0.0 if exact else torch.finfo(mine.dtype).eps
        errors = [largest_error(expected[part], run[part])[0] for run in own]
        # what loses half of the digits by one bit is a jump, not rounding: no excuse for the result
        baseline = max([*errors[:1], *(e for e in errors[1:] if e < unit**0.5)], default=0.0)
        allowed = FACTOR * baseline + ULPS * unit if tolerance is None else tolerance
        # where the original itself overflows or is NaN there is nothing to compare with
        if not baseline < float("inf") or _undefined(expected[part]):
            allowed = float("inf")
        if allowed == float("inf"):
            error = 0.0
        checks.append(OutputCheck(name, label, baseline, error, allowed, absolute))
    return checks


def parts(case: Case, expected: Tensor) -> list[tuple[str, Any]]:
    """What is judged by itself: the rows of a batch, or the whole."""
    rows = case.rows
    if rows is None or expected.dim() == 0 or expected.shape[0] != len(rows):
        return [(case.name, ...)]
    return [(row, index) for index, row in enumerate(rows)]


def _undefined(reference: Tensor) -> bool:
    return reference.numel() > 0 and bool(torch.isnan(reference).all())


def largest_error(reference: Tensor, result: Tensor) -> tuple[float, float]:
    """Largest error relative to the largest magnitude of the reference, and the largest error itself."""
    if reference.numel() == 0:
        return 0.0, 0.0
    if not reference.is_floating_point() and not reference.is_complex():
        wrong = float((reference != result).double().max())
        return wrong, wrong
    wide = torch.complex128 if reference.is_complex() else torch.float64
    # equal infinities, as in masks; NaN where the reference has it, as in 0 / 0
    same = (reference == result.to(wide)) | torch.isnan(reference)
    difference = torch.where(same, 0.0, (reference - result.to(wide)).abs())
    absolute = float(difference.max())
    finite = reference.abs()[torch.isfinite(reference.abs())]
    scale = float(finite.max()) if finite.numel() else 0.0
    return (absolute / scale if scale > 0 else absolute), absolute


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
