"""center-stream: what is not converted, and what is said of it: the reason, the node and the user's line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.rewrite import parse, run_pipeline
from tests.passes.centred import (
    SETUP,
    TOKENS,
    Branch,
    D,
    Held,
    became,
    center,
    centring,
    converts,
    network,
    pre_norm,
    refuses,
)
from tests.passes.judge import right

IMAGE = (2, 3, 8, 8)


def line_of(text: str) -> str:
    """file:line of the only line of this file that holds ``text``."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if text in line and "line_of" not in line]
    return f"{Path(__file__).name}:{number}"


def blocks(m: Any, x: Tensor) -> Any:
    x = x + m.a(x)
    return m.head(m.norm(x + m.b(x)))


def test_post_norm_layers() -> None:
    """BERT: the residual is taken behind the norm, whose gain and bias cannot leave."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.first(m.words(x))
        for index in "12":
            x = getattr(m, f"p{index}")(x + getattr(m, f"f{index}")(x))
        return m.head(x)

    def feed() -> nn.Module:
        return nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.Linear(8, D))

    net = pre_norm(
        wiring,
        words=nn.Embedding(11, D),
        first=nn.LayerNorm(D),
        f1=feed(),
        f2=feed(),
        p1=nn.LayerNorm(D),
        p2=nn.LayerNorm(D),
    )
    outcome = right(center(net, torch.randint(0, 11, (2, 5))))
    declined = {d.site: d for d in centring(outcome).declined}
    # what the embedding alone writes can be centred, and then its bias stays as an addition
    assert set(declined) >= {"p1", "p2"}
    for site in ("p1", "p2"):
        assert declined[site].code == "NF118"
        assert declined[site].node.startswith("add")
        assert "nets.py" in declined[site].line


@pytest.mark.parametrize(
    "foreign", ["linear", "conv1d", "gelu", "batch_norm", "max_pool1d", "cumsum"]
)
def test_a_foreign_reader_is_named(foreign: str) -> None:
    """One op that reads the raw stream at its end holds every norm on it."""
    readers: dict[str, Callable[[Any, Tensor], Any]] = {
        "linear": lambda m, x: m.f(x),  # reads: linear
        "conv1d": lambda m, x: m.c(x),  # reads: conv1d
        "gelu": lambda m, x: F.gelu(x),  # reads: gelu
        "batch_norm": lambda m, x: F.gelu(m.n(x)),  # reads: batch_norm
        "max_pool1d": lambda m, x: F.max_pool1d(x.transpose(1, 2), 2),  # reads: max_pool1d
        "cumsum": lambda m, x: x.cumsum(-1),  # reads: cumsum
    }

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x)
        x = x + m.b(x)
        return m.head(m.norm(x)), readers[foreign](m, x)

    net = pre_norm(wiring, f=nn.Linear(D, 4), c=nn.Conv1d(5, 4, 1), n=nn.BatchNorm1d(5))
    outcome = center(net, torch.randn(TOKENS))
    declined = refuses(outcome, "NF119")
    assert {d.site for d in declined} == {"a.norm", "b.norm", "norm"}
    named = {"batch_norm": "channel_affine", "max_pool1d": "max_pool"}.get(foreign, foreign)
    for decline in declined:
        assert decline.node.startswith(named), decline.node
        assert "nets.py" in decline.line


class Tapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        seen = torch.sigmoid(x)  # the culprit
        return self.head(self.norm(x)) + seen


def test_the_line_of_the_foreign_reader() -> None:
    (decline,) = refuses(center(Tapped().eval(), torch.randn(TOKENS)), "NF119")
    assert decline.node.startswith("sigmoid")
    assert line_of("# the culprit") in decline.line


def test_a_foreign_reader_upstream_costs_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return blocks(m, x), torch.sigmoid(x)

    converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=3, ops=1)


@pytest.mark.parametrize("at", ["end", "middle", "start"])
def test_outputs_that_expose_the_stream(at: str) -> None:
    """At the end it holds all norms; before that, one op behind it frees those that follow."""

    def wiring(m: Any, x: Tensor) -> Any:
        x0 = m.stem(x)
        x1 = x0 + m.a(x0)
        x2 = x1 + m.b(x1)
        x3 = x2 + m.c(x2)
        seen = {"start": x0, "middle": x1, "end": x3}[at]
        return m.head(m.norm(x3)), seen

    outcome = center(pre_norm(wiring, c=Branch()), torch.randn(TOKENS))
    expected = {"start": (4, 0, 1), "middle": (3, 1, 1), "end": (0, 4, 0)}[at]
    converts(outcome, *expected)
    declined = centring(outcome).declined
    assert {d.code for d in declined} <= {"NF123"}
    assert len(declined) == expected[1]
    assert all(d.node == "output" for d in declined)


def test_a_norm_behind_an_activation() -> None:
    net = pre_norm(lambda m, x: m.head(m.norm(F.gelu(m.stem(x)))))
    (decline,) = refuses(center(net, torch.randn(TOKENS)), "NF120")
    assert decline.node.startswith("gelu")


def test_a_norm_behind_a_depthwise_convolution() -> None:
    """ConvNeXt's block: the norm reads a depthwise convolution."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.patch(x)
        y = m.inner(m.depthwise(x).permute(0, 2, 3, 1))
        x = x + m.f(F.gelu(y @ m.w())).permute(0, 3, 1, 2)
        return m.head(m.norm(x.mean((2, 3))))

    net = pre_norm(
        wiring,
        patch=nn.Conv2d(3, D, 2, 2),
        depthwise=nn.Conv2d(D, D, 3, padding=1, groups=D),
        inner=nn.LayerNorm(D),
        f=nn.Linear(D, D),
        w=Held(D, D),
    )
    outcome = right(center(net, torch.randn(IMAGE)))
    told = {d.site: (d.code, d.node.split(" ")[0]) for d in centring(outcome).declined}
    assert told["inner"][0] == "NF120"
    assert told["norm"][0] == "NF119", "an op in front of it would cost what it saves"
    assert all(node.startswith("conv2d") for _, node in told.values())


@pytest.mark.parametrize("spelling", ["layer", "group"])
def test_norms_over_an_image(spelling: str) -> None:
    """One mean over channels and places: LayerNorm((C, H, W)), GroupNorm(1, C)."""
    norm: nn.Module = nn.LayerNorm((D, 8, 8), elementwise_affine=False)
    if spelling == "group":
        norm = nn.GroupNorm(1, D)
    net = network(
        lambda m, x: m.out(m.norm(m.conv(x))),
        conv=nn.Conv2d(3, D, 3, padding=1),
        norm=norm,
        out=nn.Conv2d(D, 4, 1),
    )
    refuses(center(net, torch.randn(IMAGE)), "NF121")


def merged_by_reshape(m: Any, x: Tensor) -> Any:
    x = x.reshape(-1, 2, 2, 3, 2, D)
    return m.merge(x.permute(0, 1, 3, 4, 2, 5).reshape(-1, 6, 4 * D))


def merged_by_cat(m: Any, x: Tensor) -> Any:
    x = x.reshape(-1, 4, 6, D)
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return m.merge(torch.cat(parts, -1).reshape(-1, 6, 4 * D))


@pytest.mark.parametrize("merging", [merged_by_reshape, merged_by_cat])
def test_patch_merging(merging: Callable[..., Any]) -> None:
    """Swin v1: a mean over four tokens sees the differences of their means, and holds the stage before."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem0(x)
        x = x + m.c(x)
        return blocks(m, m.reduction(merging(m, x)))

    net = pre_norm(
        wiring,
        stem0=nn.Linear(D, D),
        c=Branch(),
        merge=nn.LayerNorm(4 * D),
        reduction=nn.Linear(4 * D, D, bias=False),
    )
    outcome = right(center(net, torch.randn(2, 24, D)))
    told = {d.site: d.code for d in centring(outcome).declined}
    assert told["merge"] == "NF121"
    assert told["c.norm"] == "NF119"
    assert became(outcome) == (3, 2, 0)


def test_a_norm_of_width_one() -> None:
    net = network(lambda m, x: m.norm(m.fc(x)) + m.fc(x), fc=nn.Linear(D, 1), norm=nn.LayerNorm(1))
    (decline,) = refuses(center(net, torch.randn(TOKENS)), "NF124")
    assert decline.site == "norm"


def test_a_gain_over_several_axes() -> None:
    net = network(lambda m, x: m.norm(m.fc(x)), fc=nn.Linear(D, D), norm=nn.LayerNorm((5, D)))
    refuses(center(net, torch.randn(TOKENS)), "NF116")


def test_a_gain_that_is_computed_at_run_time() -> None:
    def computed(m: Any, x: Tensor) -> Any:
        y = m.fc(x)
        return F.layer_norm(y, (D,), y.mean((0, 1)))

    net = network(computed, fc=nn.Linear(D, D))
    (decline,) = refuses(center(net, torch.randn(TOKENS)), "NF116")
    assert decline.detail == "its gain or bias is computed at run time"


def test_a_tap_of_part_of_the_features() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x)
        return m.head(m.norm(x)), F.gelu(x[..., :2])

    declined = refuses(center(pre_norm(wiring), torch.randn(TOKENS)), "NF119")
    assert all("slice" in d.node for d in declined)


def test_features_cut_in_two_and_normed_apart() -> None:
    """Groups of the parts, of the whole, and of both at once: nested means are not one mean."""

    def apart(m: Any, x: Tensor) -> Any:
        one, other = m.stem(x).chunk(2, -1)
        return m.head(torch.cat([m.half0(one), m.half1(other)], -1))

    halves = {f"half{index}": nn.LayerNorm(3, elementwise_affine=False) for index in range(2)}
    converts(center(pre_norm(apart, **halves), torch.randn(TOKENS)), rms=2)

    def both(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        one, other = x.chunk(2, -1)
        return m.head(m.norm(x) + torch.cat([m.half0(one), m.half1(other)], -1))

    outcome = right(center(pre_norm(both, **halves), torch.randn(TOKENS)))
    assert became(outcome)[0] <= 2
    assert len(centring(outcome).declined) == became(outcome)[1] >= 1


def test_every_decline_is_said_once() -> None:
    net = pre_norm(lambda m, x: (blocks(m, m.stem(x)), m.stem(x).cumsum(-1)))
    graph = capture(net, (torch.randn(TOKENS),))
    _, reports = run_pipeline(graph, parse(f"{SETUP},center-stream"))
    sites = [d.site for d in reports[-1].declined] + [a.site for a in reports[-1].applied]
    assert sorted(sites) == ["a.norm", "b.norm", "norm"]
