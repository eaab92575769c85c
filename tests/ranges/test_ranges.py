"""Intervals: the union of two sources, within hard bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from normfold.domains.observed import Measured, measure
from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.ir.intervals import Interval, range_of
from normfold.ranges.ranges import distance, merge_ranges
from tests.nets import Compose


def network() -> torch.nn.Module:
    return Compose(lambda m, x: F.relu6(3 * x)).eval()


@pytest.mark.parametrize(("joined", "wanted"), [(True, (0.0, 6.0)), (False, (0.0, 4.0))])
def test_both_sources(joined: bool, wanted: tuple[float, float]) -> None:
    graph = capture(network(), (torch.randn(2, 5),))
    node = next(node for node in graph.nodes if op_name(node) in ("relu6", "hardtanh"))
    told = {node: Interval(-1.0, 64.0)}
    found = merge_ranges({node: Measured(Interval(0.0, 4.0))}, told, told if joined else ())
    assert range_of(node) == Interval(*wanted)
    assert found["distance"] == pytest.approx(abs(math.log2(4 / 65)))
    assert found["apart"] == {node.name: pytest.approx(4 / 65)}


def test_what_is_measured() -> None:
    graph = capture(network(), (torch.randn(2, 5),))
    found = measure(graph, [(torch.tensor([[-1.0, 0.5]]),), (torch.tensor([[1.0, 3.0]]),)])
    intervals = {node.op: item.interval for node, item in found.items() if node.op == "placeholder"}
    assert intervals == {"placeholder": Interval(-1.0, 3.0)}
    assert distance({"a": Interval(0.0, 2.0)}, {"a": Interval(0.0, 0.5)}) == pytest.approx(2.0)
