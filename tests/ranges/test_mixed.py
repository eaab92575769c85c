"""Formats by layer: who must share one, what they cost, the passes that come of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normfold.ir import Graph, capture
from normfold.ranges.mixed import BLOCK, FLOAT, SIMULATED, allocate, executed, pipeline, size
from normfold.ranges.sensitivity import Layer, sensitivities
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def graph() -> Graph:
    """Two convolutions meet in a sum; one is called twice; a matrix reads the mean."""
    torch.manual_seed(0)
    module = Compose(
        lambda m, x: m.head(F.relu(m.twice(m.twice(m.left(x) + m.right(x)))).mean((2, 3))),
        left=nn.Conv2d(3, 32, 3),
        right=nn.Conv2d(3, 32, 3),
        twice=nn.Conv2d(32, 32, 1),
        head=nn.Linear(32, 5),
    )
    return capture(perturb(module), (X,))


def paths(formats: object) -> list[tuple[str, ...]]:
    layers = sensitivities(graph(), [(X,)], formats, BLOCK)  # type: ignore[arg-type]
    return list(allocate(layers, formats).groups)  # type: ignore[arg-type]


def test_what_meets_in_a_sum_shares_a_format_if_it_may_stay_in_floats() -> None:
    assert paths(executed) == [("left", "right"), ("twice", "twice"), ("head",)]


def test_integers_of_different_width_meet_freely() -> None:
    assert paths(lambda layer: SIMULATED) == [("left",), ("right",), ("twice", "twice"), ("head",)]


def test_formats_are_those_that_run() -> None:
    layers = {layer.path: layer for layer in sensitivities(graph(), [(X,)], executed, BLOCK)}
    assert executed(layers["left"]) == (8, FLOAT)
    assert executed(layers["head"]) == (4, 8, FLOAT)
    assert size(layers["head"], 4) == 32 * 5 / 2


@pytest.mark.parametrize("simulate", [True, False])
def test_the_pipeline_gives_each_layer_its_bits(simulate: bool) -> None:
    text = pipeline({"left": 8, "right": FLOAT, "head": 4}, simulate)
    assert (f"block={BLOCK}" in text) is not simulate
    _, reports = run_pipeline(graph(), parse(text))
    assert [sorted(item.site for item in report.applied) for report in reports] == [
        ["head"],
        ["left"],
    ]
    assert [item.detail for item in reports[0].applied] == ["4 bits"]


def test_the_frontier_runs_from_the_smallest_to_the_most_faithful() -> None:
    def formats(layer: Layer) -> Sequence[int]:
        return (2, 8)

    layers = sensitivities(graph(), [(X,)], formats)
    found = allocate(layers, formats)
    first, last = found.choices[0], found.choices[-1]
    assert set(found.bits(first).values()) == {2}
    assert set(found.bits(last).values()) == {8}
    assert first.cost == last.cost / 4 == sum(layer.weights for layer in layers) / 4
    assert first.harm > last.harm
