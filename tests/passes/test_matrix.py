"""The generated matrix: layer x groups x padding x bias x affine x direction x dtype.

Every case must be right (float64 algebra, and rounding in its own dtype), and either have no norm and no
per-channel op left or carry a reason. `expected` says which, so that a silent loss of coverage fails.

`make test` runs a third of the families in float32, the one where (layer + padding) mod 3 names the groups:
every pair of values still meets. The zoo runs all, in float16 and bfloat16 too.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from normfold.ir import capture
from tests.nets import (
    DTYPES,
    GROUPS,
    LAYERS,
    PADDINGS,
    Case,
    Matrix,
    cases,
    families,
    matrix_input,
    perturb,
)
from tests.passes.judge import Outcome, judge


def expected(case: Case, option: str) -> str:
    """``folded``, or the code of the decline, for fold-affine{zero-padding=option}."""
    if not case.before:
        return "folded"  # into the producer: padding does not matter
    if case.layer.startswith("transposed"):
        # the shift needs a map of the output's size, which is larger than the input's
        return "folded" if option == "map" else "NF114"
    if case.layer == "linear3" and case.padding == "asymmetric":
        return "NF114"  # padded tokens are zero, not shift: a linear has no map, one addition stays
    return "folded"


def covering(family: tuple[str, str, str]) -> list[Case]:
    """The cases of a family that `make test` runs."""
    layer, groups, padding = family
    number = LAYERS.index(layer) + PADDINGS.index(padding)
    if not layer.startswith("linear") and GROUPS[number % 3] != groups:
        return []
    return cases(*family)


def run(branches: list[Case], dtype: torch.dtype, seed: int = 0) -> dict[str, Outcome]:
    """One capture, then the pipeline with zero padding treated the cheapest way and (float32) as a map.

    Where nothing is padded with zeros the two are the same.
    """
    module = perturb(Matrix(branches), seed).to(dtype)
    graph = capture(module, (matrix_input(branches[0].layer).to(dtype),))
    first = branches[0]
    zeros = first.padding in ("zeros", "asymmetric", "same") or "transposed" in first.layer
    return {
        option: judge(graph, f"canonicalize,fold-affine{{zero-padding={option}}},restore")
        for option in (("cheapest", "map") if dtype is torch.float32 and zeros else ("cheapest",))
    }


def complaints(branches: list[Case], dtype: torch.dtype) -> list[str]:
    """What is wrong with each case, in words."""
    found = []
    for option, outcome in run(branches, dtype).items():
        for index, case in enumerate(branches):
            site = f"branches.{index}.norm"
            codes = [decline.code for decline in outcome.declined if decline.site == site]
            gone = not outcome.left(f"branches.{index}.")
            state = "folded" if gone and not codes else ",".join(codes) or "left without a reason"
            if why := outcome.wrong(index):
                found.append(f"{case} [{option}]: {why}")
            if state != expected(case, option):
                found.append(f"{case} [{option}]: {state}, expected {expected(case, option)}")
    return found


def _named(dtypes: list[str], chosen: bool) -> list[object]:
    return [
        pytest.param(branches, DTYPES[dtype], id="-".join((*family, dtype)))
        for dtype in dtypes
        for family in families()
        if (branches := covering(family) if chosen else cases(*family))
    ]


@pytest.mark.parametrize(("branches", "dtype"), _named(["f32"], chosen=True))
def test_case(branches: list[Case], dtype: torch.dtype) -> None:
    found = complaints(branches, dtype)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize(("branches", "dtype"), _named(list(DTYPES), chosen=False))
def test_full_product(branches: list[Case], dtype: torch.dtype) -> None:
    found = complaints(branches, dtype)
    assert not found, "\n" + "\n".join(found)


def test_the_product_is_whole() -> None:
    """As many cases as the issue's table has, and what they are expected to do, in numbers."""
    whole = [case for family in families() for case in cases(*family)]
    assert len(whole) == len(set(whole)) == 744
    table = Counter((case.before, expected(case, "cheapest")) for case in whole)
    assert table == {
        (False, "folded"): 372,
        (True, "folded"): 260,
        (True, "NF114"): 112,
    }


def test_the_subset_is_pairwise() -> None:
    """Every pair of values of two columns that the product has is in the subset too."""

    def pairs(rows: list[Case]) -> set[tuple[int, int, object, object]]:
        found = set()
        for row in rows:
            values = list(vars(row).values())
            for i in range(len(values)):
                found |= {(i, j, values[i], values[j]) for j in range(i)}
        return found

    whole = [case for family in families() for case in cases(*family)]
    subset = [case for family in families() for case in covering(family)]
    assert pairs(subset) == pairs(whole)
    assert len(subset) < len(whole) / 2
