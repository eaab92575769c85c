"""fold-affine: golden, equal, declines, idempotent, no-op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.report.reasons import by_code
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, RepBlock, Residual, batch_norms, conv, perturb
from tests.passes.declined import REFUSALS
from tests.passes.judge import declines, fold, folded, golden_pass, judge, untouched

IMAGE = (2, 4, 5, 6)


# -- golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("conv-bn", nn.Sequential(conv(4, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU())),
        ("bn-conv", nn.Sequential(nn.BatchNorm2d(4), conv(4, 6, padding=0))),
        ("bias-map", nn.Sequential(nn.BatchNorm2d(4), conv(4, 4))),
        (
            "grouped-transposed",
            nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        ),
        ("residual", Residual()),
        ("repvgg", RepBlock()),
    ],
)
def test_golden(name: str, module: nn.Module) -> None:
    graph = capture(module.eval(), (torch.randn(IMAGE),))
    golden_pass(f"fold-affine/{name}", graph, "canonicalize")


# -- equal ------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.data())
def test_equal(data: st.DataObject) -> None:
    """conv-BN-conv with random channels, groups, kernels, strides, dilations, padding and sizes."""
    draw = data.draw

    def layer(wide: int, narrow: int) -> nn.Module:
        kernel = draw(st.sampled_from([1, 2, 3]))
        return nn.Conv2d(
            wide,
            narrow,
            kernel,
            stride=draw(st.integers(1, 2)),
            dilation=draw(st.integers(1, 2)),
            padding=draw(st.integers(0, kernel)),
            groups=draw(st.sampled_from([1, 2])),
            bias=draw(st.booleans()),
        )

    middle = draw(st.sampled_from([2, 4, 6]))
    net = Compose(
        lambda m, x: m.back(m.norm(F.relu(m.front(x)))),
        front=layer(4, middle),
        norm=nn.BatchNorm2d(middle),
        back=layer(middle, 4),
    )
    height, width = draw(st.integers(9, 12)), draw(st.integers(9, 12))
    outcome = fold(perturb(net), torch.randn(2, 4, height, width), options="zero-padding=map")
    folded(outcome)
    assert [a.detail for a in outcome.folding.applied] == ["forward"]


# -- declines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        code
        for code, row in REFUSALS.items()
        if row.step == "fold-affine" and not row.condition and code not in ("NF101", "NF116")
    ],
)
def test_declines(code: str) -> None:
    refusal = REFUSALS[code]
    module, x = refusal.build()
    outcome = declines(fold(module, x, options=refusal.options, dynamic=refusal.dynamic), code)
    decline = outcome.declined[0]
    reason = by_code(code)
    assert reason is not None
    assert (decline.site, decline.kind) == ("norm", "batch-norm")
    assert (decline.reason, decline.hint) == (reason.summary, reason.remedy)
    assert decline.node
    assert "declined.py" in decline.line or "nets.py" in decline.line
    assert outcome.left(), "declined, and yet nothing is left"


# -- idempotent -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [Residual, RepBlock, *(REFUSALS[c].build for c in ("NF105", "NF114"))]
)
def test_idempotent(build: Any) -> None:
    made = build()
    module = made[0] if isinstance(made, tuple) else perturb(made)
    untouched(capture(module, (torch.randn(IMAGE),)), "canonicalize,fold-affine,fold-affine")


def test_declines_are_the_same_the_second_time() -> None:
    module, x = REFUSALS["NF114"].build()
    _, reports = run_pipeline(capture(module, (x,)), parse("canonicalize,fold-affine,fold-affine"))
    assert (
        [d.code for d in reports[1].declined] == [d.code for d in reports[2].declined] == ["NF114"]
    )


# -- no-op ------------------------------------------------------------------------------------------


def test_no_op() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv(4, 2)).eval()
    untouched(capture(net, (torch.randn(IMAGE),)), "canonicalize,fold-affine")


# -- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "way"), [("both", "backward"), ("backward", "backward"), ("forward", "forward")]
)
def test_direction(direction: str, way: str) -> None:
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4, 4, 1)))
    outcome = folded(fold(net, torch.randn(IMAGE), options=f"direction={direction}"))
    assert [applied.detail for applied in outcome.folding.applied] == [way]


def test_large_gain_is_folded_and_warned_about() -> None:
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4, eps=1e-12)))
    for _, norm in batch_norms(net):
        norm.running_var[1] = 1e-12  # type: ignore[operator]
    outcome = folded(fold(net, torch.randn(IMAGE)))
    assert [(w.site, w.code) for w in outcome.folding.warnings] == [("1", "NF201")]
    silent = fold(net, torch.randn(IMAGE), options="max-gain=1e9")
    assert not silent.folding.warnings


def test_copy_shared_false_still_folds_what_is_not_shared() -> None:
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)))
    folded(fold(net, torch.randn(IMAGE), options="copy-shared=false"))


def test_unbaked_is_trainable() -> None:
    """Gradients reach every parameter of the original through the folded, un-baked graph, and are right."""
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), Residual()))
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    x = torch.randn(IMAGE)
    after = judge(capture(net, (x,)), "canonicalize,fold-affine,restore").after
    weights = torch.randn(net(x).shape)
    (net(x) * weights).sum().backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    (after(x) * weights).sum().backward()
    assert wanted.keys() == {name for name, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        scale = wanted[name].abs().max()
        assert (parameter.grad - wanted[name]).abs().max() <= 1e-4 * scale + 1e-6, name
