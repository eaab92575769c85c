"""What looks like a hand-written norm and is another function is left alone; each is named by its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import order
from normfold.ir.graph import op_name
from normfold.ir.text import graph_text
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose
from tests.passes.judge import untouched

EPS = 1e-3


def _mean(x: Tensor, dims: Any = -1) -> Tensor:
    return x.mean(dims, keepdim=True)


def _var(x: Tensor, dims: Any = -1, correction: int = 0) -> Tensor:
    return x.var(dims, correction=correction, keepdim=True)


def _dev(x: Tensor, dims: Any = -1) -> Tensor:
    return x - _mean(x, dims)


LOOK_ALIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "unbiased variance": lambda x: _dev(x) / (_var(x, correction=1) + EPS).sqrt(),
    "unbiased by default": lambda x: _dev(x) / (x.var(-1, keepdim=True) + EPS).sqrt(),
    "unbiased var_mean": lambda x: _dev(x) * (torch.var_mean(x, -1, keepdim=True)[0] + EPS).rsqrt(),
    "sum over n - 1": lambda x: _dev(x) / (_dev(x).pow(2).sum(-1, True) / 5 + EPS).sqrt(),
    "sum, not mean": lambda x: x / (x.pow(2).sum(-1, True) + EPS).sqrt(),
    "eps outside the root": lambda x: _dev(x) / (_var(x).sqrt() + EPS),
    "eps on the deviation": lambda x: _dev(x) / (x.std(-1, correction=0, keepdim=True) + EPS),
    "eps outside rsqrt": lambda x: x * (x.pow(2).mean(-1, True).rsqrt() + EPS),
    "eps twice": lambda x: x * ((x.pow(2).mean(-1, True) + EPS).sqrt() + EPS).reciprocal(),
    "no eps": lambda x: _dev(x) / _var(x).sqrt(),
    "negative eps": lambda x: x * (x.pow(2).mean(-1, True) - EPS).clamp(min=EPS).rsqrt(),
    "clamp for eps": lambda x: _dev(x) / _var(x).clamp(min=EPS).sqrt(),
    "clamp from above": lambda x: _dev(x) / (_var(x).clamp(0, 1) + EPS).sqrt(),
    "eps that depends on x": lambda x: _dev(x) / (_var(x) + _mean(x).abs() + EPS).sqrt(),
    "eps per channel": lambda x: _dev(x) / (_var(x) + torch.full((6,), EPS)).sqrt(),
    "variance of an uncentred x": lambda x: x * (_var(x) + EPS).rsqrt(),
    "mean square of a centred x": lambda x: _dev(x) * (x.pow(2).mean(-1, True) + EPS).rsqrt(),
    "wrong root": lambda x: _dev(x) / (_var(x) + EPS),
    "multiplied by the root": lambda x: _dev(x) * (_var(x) + EPS).sqrt(),
    "divided by the reciprocal": lambda x: _dev(x) / (_var(x) + EPS).rsqrt(),
    "fourth root": lambda x: x / (x.pow(2).mean(-1, True) + EPS).sqrt().sqrt(),
    "cube": lambda x: x / (x.abs().pow(3).mean(-1, True) + EPS).sqrt(),
    "mean of absolutes": lambda x: x / (x.abs().mean(-1, True) + EPS).sqrt(),
    "greatest": lambda x: x / (x.pow(2).amax(-1, True) + EPS).sqrt(),
    "rounded quotient": lambda x: torch.div(_dev(x), (_var(x) + EPS).sqrt(), rounding_mode="floor"),
    "negative": lambda x: (_mean(x) - x) / (_var(x) + EPS).sqrt(),
    "sum with the mean": lambda x: (x + _mean(x)) / (_var(x) + EPS).sqrt(),
    "twice the mean": lambda x: torch.sub(x, _mean(x), alpha=2) / (_var(x) + EPS).sqrt(),
    "other axes for the mean": lambda x: _dev(x, 1) / (_var(x) + EPS).sqrt(),
    "other axes for the variance": lambda x: _dev(x) / (_var(x, (1, 2)) + EPS).sqrt(),
    "mean of another tensor": lambda x: (x - _mean(x.abs())) / (_var(x) + EPS).sqrt(),
    "variance of another tensor": lambda x: _dev(x) / (_var(x.abs()) + EPS).sqrt(),
    "square of another tensor": lambda x: x / ((x * x.abs()).mean(-1, True) + 9).sqrt(),
    "product of opposites": lambda x: _dev(x) / ((_dev(x) * -_dev(x)).mean(-1, True) + 9).sqrt(),
    "opposite deviations": lambda x: (
        _dev(x) / ((_dev(x) * (_mean(x) - x)).mean(-1, True) + 9).sqrt()
    ),
    "difference of other axes": lambda x: _dev(x) / (_mean(x * x) - _mean(x, 1) ** 2 + 9).sqrt(),
    "difference the wrong way": lambda x: _dev(x) / (_mean(x) ** 2 - _mean(x * x) + 9).sqrt(),
    "difference with a factor": lambda x: (
        _dev(x) / (torch.sub(_mean(x * x), _mean(x) ** 2, alpha=2) + 9).sqrt()
    ),
    "axes in the middle": lambda x: _dev(x, (1, 2)) / (_var(x, (1, 2)) + EPS).sqrt(),
    "over the samples": lambda x: _dev(x, 0) / (_var(x, 0) + EPS).sqrt(),
    "statistics of a rounded x": lambda x: (
        x * (x.half().float().pow(2).mean(-1, True) + EPS).rsqrt()
    ),
    "rounded root": lambda x: x * (x.pow(2).mean(-1, True) + EPS).rsqrt().half(),
    "shifted after the statistics": lambda x: (x + 1) * (x.pow(2).mean(-1, True) + EPS).rsqrt(),
    "unit length": lambda x: F.normalize(x, dim=-1),
}


def test_look_alikes_are_left_alone() -> None:
    net = Compose(lambda m, x: tuple(spelling(x) for spelling in LOOK_ALIKES.values())).eval()
    graph = capture(net, (torch.randn(2, 4, 5, 6),))
    after, reports = run_pipeline(graph, parse("canonicalize"))
    taken = [name for name, is_norm in zip(LOOK_ALIKES, _norms(after), strict=True) if is_norm]
    assert taken == []
    assert not after.sites
    assert reports[0].declined == []
    wanted = Evaluator(graph.module, Float64())(*graph.args)
    results = Evaluator(after.module, Float64())(*graph.args)
    assert all(torch.equal(a, b) for a, b in zip(wanted, results, strict=True))


def _norms(graph: Graph) -> list[bool]:
    """For every output whether a norm op leads to it."""
    output: Any = next(node for node in graph.nodes if node.op == "output")
    return [
        any(op_name(node) in ("layer_norm", "rms_norm") for node in order(result, ()))
        for result in output.args[0]
    ]


def test_that_can_fail() -> None:
    """The same check on a norm, so that it would see one."""
    graph = capture(
        Compose(lambda m, x: (_dev(x), _dev(x) / (_var(x) + EPS).sqrt())).eval(),
        (torch.randn(2, 5, 6),),
    )
    after, _ = run_pipeline(graph, parse("canonicalize"))
    assert _norms(after) == [False, True]


def test_without_keepdim_the_statistics_belong_to_another_axis() -> None:
    """A square tensor hides it: the mean of row i is subtracted from column i."""

    def net(x: Tensor) -> Tensor:
        return (x - x.mean(-1)) / (x.var(-1, correction=0) + EPS).sqrt()

    def late(x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1) + EPS).rsqrt().unsqueeze(0)

    graph = capture(
        Compose(lambda m, x: (net(x), late(x))).eval(), (torch.randn(5, 5),), dynamic=None
    )
    untouched(graph, "canonicalize")


def test_a_trained_eps_stays() -> None:
    def net(m: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.eps.bias)

    graph = capture(Compose(net, eps=nn.Linear(1, 1)).eval(), (torch.randn(2, 5, 6),))
    after, (report,) = run_pipeline(graph, parse("canonicalize"))
    assert graph_text(after) == graph_text(graph)
    assert [item.kind for item in report.applied] == ["constant"]  # a number like others


def test_a_size_that_changes_at_run_time_stays() -> None:
    """`layer_norm` wants its shape: a dynamic axis has none."""

    def net(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS)

    shapes = (({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),)
    graph = capture(Compose(lambda m, x: net(x)).eval(), (torch.randn(2, 5, 6),), dynamic=shapes)
    untouched(graph, "canonicalize")
