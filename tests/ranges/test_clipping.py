"""Cuts of intervals, against every one of them tried by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from normfold.ir import Graph, capture
from normfold.ir.intervals import Interval, range_of, set_range
from normfold.ranges import clipping
from normfold.ranges.clipping import clip
from normfold.target import grids_of
from tests.nets import Compose

STEPS = 15  # of 4 bits


def reading(width: int, ends: float) -> tuple[Graph, fx.Node]:
    """An identity, and its input with these ends."""
    network = nn.Linear(width, width, bias=False)
    network.weight.data = torch.eye(width)
    graph = capture(network.eval(), (torch.randn(2, width),))
    node = next(node for node in graph.nodes if node.op == "placeholder")
    set_range(node, Interval(-ends, ends))
    return graph, node


def on_grid(x: Tensor, low: float, high: float) -> Tensor:
    """Rounded by hand."""
    scale = (high - low) / STEPS
    zero = round(-low / scale)
    return ((torch.round(x / scale) + zero).clamp(0, STEPS) - zero) * scale


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_a_few_large_values_are_cut(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share with the least error of this power."""
    monkeypatch.setattr(clipping, "_POWERS", (power,))
    graph, node = reading(5, 12.0)
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 12.0
    clip(graph, [(x[:2000],), (x[2000:],)], grids_of("ort-x86"), 4)
    found = range_of(node)
    assert found is not None

    def error(low: float, high: float) -> float:
        return float(((on_grid(x, low, high) - x).abs() ** power).mean())

    ends = [12.0 * share / 16 for share in range(1, 17)]
    best = min(error(-low, high) for low in ends for high in ends)
    assert error(found.low, found.high) < 1.05 * best
    assert error(found.low, found.high) < 0.7 * error(-12.0, 12.0)


def test_the_outputs_decide() -> None:
    """Of one value in each row that all rests on nothing is cut; of one in a thousand rows it is."""
    x = 0.4 * torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    rare, telling = x.clone(), x.clone()
    rare[0, 0] = 12.0
    telling[torch.arange(400), torch.arange(400) % 256] = 12.0
    for inputs, cut in ((rare, True), (telling, False)):
        graph, node = reading(256, 12.0)
        clip(graph, [(inputs,)], grids_of("ort-x86"), 4)
        found = range_of(node)
        assert found is not None
        assert (found.high < 10) == cut


def test_answers_without_scores_decide_too() -> None:
    """A network that gives the number of a class."""
    network: Any = Compose(lambda m, x: m.fc(x).argmax(-1), fc=nn.Linear(256, 256, bias=False))
    network.fc.weight.data = torch.eye(256)
    graph = capture(network.eval(), (torch.randn(2, 256),))
    node = next(node for node in graph.nodes if node.op == "placeholder")
    set_range(node, Interval(-12.0, 12.0))
    x = 0.1 * torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    x[torch.arange(400), torch.arange(400) % 256] = 8.0
    x[torch.arange(400), (torch.arange(400) + 1) % 256] = 12.0
    clip(graph, [(x,)], grids_of("ort-x86"), 4)
    found = range_of(node)
    assert found is not None
    assert found.high > 8.5  # or two of them are one


def test_inputs_that_give_no_numbers_cut_nothing() -> None:
    """Without outputs to compare nothing is known to be better than what is there."""
    graph, node = reading(5, 12.0)
    clip(graph, [(torch.full((2, 5), torch.nan),)], grids_of("ort-x86"))
    assert range_of(node) == Interval(-12.0, 12.0)
