"""bake: golden, equal, idempotent, no-op. It declines nothing. The baker itself: tests/ir/test_bake.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normfold.ir import capture
from normfold.rewrite import parse, run_pipeline
from tests.nets import Encoder, RepBlock, Residual, conv, perturb
from tests.passes.judge import golden_pass, judge, right, untouched

IMAGE = (2, 4, 5, 6)


def normalised() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(4))


# -- golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "build"), [("residual", Residual), ("weight-norm", normalised)])
def test_golden(name: str, build: Callable[[], nn.Module]) -> None:
    graph = capture(build().eval(), (torch.randn(IMAGE),))
    golden_pass(f"bake/{name}", graph, "canonicalize,fold-affine,restore")


# -- equal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Residual, RepBlock, normalised])
def test_equal(build: Callable[[], nn.Module]) -> None:
    outcome = right(
        judge(capture(perturb(build()), (torch.randn(IMAGE),)), "canonicalize,fold-affine")
    )
    assert outcome.baked.baked
    assert not outcome.after.baked


def test_each_weight_is_rounded_once() -> None:
    """The baked weight is the float64 product rounded to half precision: no float16 arithmetic on the way."""
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4))).half()
    layer, norm = net[0], net[1]  # type: ignore[index]
    graph, _ = run_pipeline(
        capture(net, (torch.randn(IMAGE).half(),)), parse("canonicalize,fold-affine,bake")
    )
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = (layer.weight.double() * gain[:, None, None, None]).half()
    baked = dict(graph.module.named_parameters())
    assert torch.equal(baked["0.weight"], wanted)
    shift = norm.bias.double() + gain * (layer.bias.double() - norm.running_mean.double())
    torch.testing.assert_close(baked["0.bias"], shift.half(), rtol=2**-11, atol=0)


def test_removes_reparametrisations_alone() -> None:
    """Weight norm without any batch norm: no pass but bake is needed."""
    net = nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU()).eval()
    outcome = right(judge(capture(net, (torch.randn(IMAGE),)), "canonicalize"))
    assert set(dict(outcome.baked.module.named_parameters())) == {"0.weight", "0.bias"}


# -- idempotent, no-op ------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "shape"), [(Residual, IMAGE), (Encoder, (2, 5, 8))])
def test_idempotent(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    graph = capture(perturb(build()), (torch.randn(shape),))
    untouched(graph, "canonicalize,fold-affine,restore,bake,bake")


def test_no_op() -> None:
    untouched(capture(nn.Sequential(conv(), nn.ReLU()).eval(), (torch.randn(IMAGE),)), "bake")
