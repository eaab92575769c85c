"""measure-ranges: what the passes that quantise need, in a pipeline of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.intervals import measured_mean, range_of
from normfold.ops.integer_ops import on_grid
from normfold.ops.linear import linear_of
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass

X = torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        Compose(
            lambda m, x: m.head(F.relu(m.norm(m.conv(x))).mean((2, 3))),
            conv=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            head=nn.Linear(8, 5),
        )
    )


def with_samples(*samples: Any) -> Graph:
    graph = capture(net(), (X[:2],))
    graph.samples = samples or [((X[:16],), {}), ((X[16:],), {})]
    return graph


def test_by_hand() -> None:
    graph, reports = run_pipeline(
        with_samples(), parse("canonicalize,fold-affine,restore,measure-ranges")
    )
    assert not reports[-1].modified
    for node in graph.nodes:
        if node.op == "call_function" and (linear := linear_of(node)) is not None and linear.kernel:
            found, mean = range_of(node), measured_mean(node)
            module: Any = net()
            wanted = module.norm(module.conv(X)).detach()
            assert found is not None
            assert found.low == pytest.approx(float(wanted.min()), rel=1e-5)
            assert found.high == pytest.approx(float(wanted.max()), rel=1e-5)
            assert mean is not None
            torch.testing.assert_close(mean.float(), wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            return
    raise AssertionError("no convolution")


def test_a_whole_pipeline_of_one_s_own() -> None:
    text = "canonicalize,fold-affine,restore,measure-ranges,quantize-weights{bits=4},quantize-activations"
    graph = with_samples()
    plain, _ = run_pipeline(graph, parse(text))
    assert sum(node.target is on_grid for node in plain.nodes) > 4
    _, reports = run_pipeline(graph, parse(f"{text},correct-bias,bake"))
    assert [item.site for item in reports[-2].applied] == ["conv"]
    result, report = normfold.run(graph, parse(f"{text},bake"), verify="off")
    assert report.ok
    with torch.no_grad():
        wanted, got = graph(X), result(X)
    assert float((got - wanted).norm() / wanted.norm()) < 0.3


def test_without_samples() -> None:
    graph = capture(net(), (X[:2],))
    _, (report,) = run_pipeline(graph, parse("measure-ranges"))
    (declined,) = report.declined
    assert declined.code == "NF127"
    assert "graph.samples" in declined.hint


@pytest.mark.parametrize("samples", [X, [X, X, X, (X, X)], [((X, X), {})], [1, (2, 3)]])
@pytest.mark.parametrize("name", ["measure-ranges", "correct-bias", "migrate-scale"])
def test_what_is_no_sample(samples: Any, name: str) -> None:
    graph = capture(net(), (X[:2],))
    graph.samples = samples
    before = "canonicalize,quantize-weights" if name == "correct-bias" else "canonicalize"
    with pytest.raises(UsageError, match="samples of the graph are not inputs of it"):
        run_pipeline(graph, parse(f"{before},{name}"))


def test_golden() -> None:
    golden_pass("measure-ranges/net", with_samples(), "canonicalize,fold-affine,restore")
