"""Where ranges come from, by source and by network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.intervals import Interval, range_of
from normfold.job import Quantize, Source
from normfold.job.presets import preset
from normfold.ranges.calibration import calibrate
from tests.nets import perturb
from tests.ranges.nets import Attention, Speaker, plain, residual

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
QUICK = Quantize(scheme="int8", images=8, synthesis_steps=5, pixels=(-2.0, 2.0))


def folded(module: nn.Module) -> Graph:
    return normfold.run(capture(perturb(module), (X,)), preset("folded"), verify="off")[0]


def found(graph: Graph, **options: Any) -> dict[str, Interval]:
    calibrated = calibrate(graph, replace(QUICK, **options))
    intervals = ((node.name, range_of(node)) for node in calibrated.graph.nodes)
    return {name: item for name, item in intervals if item is not None}


def test_the_default_is_the_union_of_what_is_measured_and_what_statistics_tell() -> None:
    graph = folded(residual())
    together = found(graph)
    told, seen = found(graph, evidence="analytic"), found(graph, evidence="synthetic")
    assert told.keys() <= together.keys()
    assert any(told[name] != seen[name] for name in told)
    for name in told:
        union = told[name].union(seen[name])
        assert together[name].low == pytest.approx(union.low, abs=1e-6)
        assert together[name].high == pytest.approx(union.high, abs=1e-6)


def test_statistics_that_do_not_fit_are_not_relied_upon() -> None:
    """The same function with a tenth of its deviations: noise widens what synthesised inputs reach."""
    module = perturb(residual())
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            norm.running_var /= 100
            norm.eps /= 100
            norm.weight.data /= 10
    graph, _ = normfold.run(capture(module, (X,)), preset("folded"), verify="off")
    calibrated = calibrate(graph, QUICK)
    assert calibrated.evidence.doubtful
    assert calibrated.evidence.source.endswith("so noise widens the ranges")
    together, noise = found(graph), found(graph, evidence="noise")
    for name, interval in noise.items():
        assert together[name].low <= interval.low
        assert together[name].high >= interval.high


def test_data_are_taken_alone_and_checked_against_the_statistics() -> None:
    graph = folded(residual())
    quiet = 1e-3 * torch.randn(8, 3, 16, 16)
    calibrated = calibrate(graph, QUICK, Source(data=quiet))
    first = next(node for node in calibrated.graph.nodes if node.op == "placeholder")
    interval = range_of(first)
    assert interval is not None
    assert float(quiet.min()) <= interval.low < 0 < interval.high <= float(quiet.max())
    assert calibrated.evidence.apart  # a thousand times too quiet: tensors are named
    assert calibrated.evidence.source.endswith("8 samples")


@pytest.mark.parametrize("evidence", ["auto", "patches", "analytic"])
def test_without_batch_norms(evidence: str) -> None:
    """LayerNorms tell what leaves them, and patches show the rest."""
    intervals = found(folded(Attention()), evidence=evidence)
    assert any("layer_norm" in name for name in intervals)
    assert all(item.low < item.high for item in intervals.values())


@pytest.mark.parametrize("evidence", ["auto", "zeroq", "synthetic", "analytic"])
def test_nothing_to_go_on(evidence: str) -> None:
    with pytest.raises(UsageError, match="nothing is known of the activations"):
        found(folded(plain()), evidence=evidence)


def test_noise_is_there_for_those_who_ask() -> None:
    assert found(folded(plain()), evidence="noise")


def test_weights_alone_need_samples_only_for_their_biases() -> None:
    graph = folded(residual())
    for correct, samples in ((False, 32), (True, 8)):  # random rows to compare on; synthesised
        options = replace(QUICK, scheme="int4-weights", correct_bias=correct)
        calibrated = calibrate(graph, options)
        assert sum(len(x[0]) for x in calibrated.inputs) == samples


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("given", [False, True])
def test_no_range_is_found_where_none_is_needed(scheme: Any, given: bool) -> None:
    graph = capture(Speaker().eval(), (torch.randint(40, (2, 5)),))
    source = Source(data=torch.randint(40, (4, 5))) if given else Source()
    calibrated = calibrate(graph, replace(QUICK, scheme=scheme), source)
    assert calibrated.inputs
    assert all(range_of(node) is None for node in calibrated.graph.nodes)
