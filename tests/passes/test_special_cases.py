"""Where other tools are wrong or give up: sharing, norm variants, positions of the norm, gates, borders.

Every network here is folded right, or declined with the reason that is written beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tests.torchvision_shim  # noqa: F401
from normfold.ir import capture
from tests.nets import Compose, RepBlock, Residual, batch_norms, conv, perturb
from tests.passes.declined import ANY_SIZE
from tests.passes.judge import Outcome, declines, fold, folded, judge, right

from torchvision.ops import FrozenBatchNorm2d  # isort: skip  (works once the shim is in)

IMAGE = (2, 4, 5, 6)
BN = nn.BatchNorm2d


def run(
    wiring: Callable[..., Any], options: str = "", dynamic: Any = "batch", **parts: nn.Module
) -> Outcome:
    return fold(
        perturb(Compose(wiring, **parts)), torch.randn(IMAGE), options=options, dynamic=dynamic
    )


def ways(outcome: Outcome) -> dict[str, str]:
    return {applied.site: applied.detail for applied in outcome.folding.applied}


# -- sharing ----------------------------------------------------------------------------------------


def test_conv_shared_by_two_call_sites() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return m.norm1(m.conv(x)), m.norm2(m.conv(F.relu(x))), m.conv(F.gelu(x))

    outcome = folded(run(wiring, conv=conv(), norm1=BN(4), norm2=BN(4)))
    weights = [n for n, _ in outcome.baked.module.named_parameters() if "weight" in n]
    assert len(weights) == 3, "two folded copies and the raw weight"


def test_conv_output_with_two_users() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return m.norm(y), F.gelu(y)

    declines(run(wiring, conv=conv(), norm=BN(4)), "NF104")


def test_conv_output_with_two_users_folds_forward() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return m.out(m.norm(y)) + F.gelu(y)

    assert ways(folded(run(wiring, conv=conv(), norm=BN(4), out=conv(4, 4, 1)))) == {
        "norm": "forward"
    }


def test_norm_called_at_two_places() -> None:
    outcome = run(lambda m, x: m.norm(m.b(F.relu(m.norm(m.a(x))))), a=conv(), b=conv(), norm=BN(4))
    assert ways(folded(outcome)) == {"norm": "backward", "norm#2": "backward"}


def test_norm_called_twice_in_a_row() -> None:
    folded(run(lambda m, x: m.norm(m.norm(m.conv(x))), conv=conv(), norm=BN(4)))


class Tied(nn.Module):
    """One matrix as embedding and as classifier, a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1 = nn.Embedding(7, 6), nn.BatchNorm1d(6)
        self.head, self.norm2 = nn.Linear(6, 7), nn.BatchNorm1d(7)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Any:
        return self.norm2(self.head(self.norm1(self.embed(x))))


def test_instance_norm_with_running_statistics() -> None:
    net = nn.Sequential(conv(), nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    folded(fold(perturb(net), torch.randn(IMAGE)))


def test_tied_weights() -> None:
    declines(fold(perturb(Tied()), torch.arange(5)), "NF102")  # a table is not copied unasked
    folded(fold(perturb(Tied()), torch.arange(5), options="untie=true"))


def test_tied_weights_without_copies() -> None:
    declines(fold(perturb(Tied()), torch.arange(5), options="copy-shared=false"), "NF102")


# -- axes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [6, 5])
def test_norm_over_another_axis_than_the_linear(length: int) -> None:
    """BatchNorm1d on (N, L, C) normalises L: with C == L the sizes fit and the fold would be wrong."""
    net = Compose(
        lambda m, x: m.b(m.norm(m.a(x))),
        a=nn.Linear(6, 6),
        norm=nn.BatchNorm1d(length),
        b=nn.Linear(6, 6),
    )
    declines(fold(perturb(net), torch.randn(2, length, 6)), "NF108")


# -- kinds of norm ----------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.running_mean, self.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(conv(), nn.SyncBatchNorm(4)),
        nn.Sequential(conv(), FrozenBatchNorm2d(4)),
        nn.Sequential(conv(), BN(4, momentum=None)),
        nn.Sequential(conv(), BN(4, eps=0.1, affine=False)),
        nn.Sequential(nn.Sequential(conv(), BN(4)), nn.ModuleList([conv(), BN(4)])[0]),
        Functional(),
    ],
    ids=["sync", "frozen", "momentum-none", "eps", "sequential-modulelist", "functional"],
)
def test_norm_kinds(net: nn.Module) -> None:
    folded(fold(perturb(net), torch.randn(IMAGE)))


def test_batch_statistics() -> None:
    outcome = run(
        lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=BN(4, track_running_stats=False)
    )
    declines(outcome, "NF101")
    assert len(outcome.left()) == 1


def test_gamma_zero_and_negative() -> None:
    net = perturb(nn.Sequential(BN(4), conv(), BN(4), nn.ReLU(), conv(), BN(4)))
    for _, norm in batch_norms(net):
        norm.weight.data[1:3] = torch.tensor([0.0, -1.5])  # type: ignore[operator]
    folded(fold(net, torch.randn(IMAGE)))


def test_hand_written_norms() -> None:
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = conv(), conv()
            self.m, self.g, self.b = (nn.Parameter(torch.randn(1, 4, 1, 1)) for _ in range(3))
            self.s = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = (self.conv(x) - self.m) / self.s * self.g + self.b
            x = self.g * (self.out(F.relu(x)) - self.m) * torch.rsqrt(self.s + 1e-5)
            return self.b - x * self.s

    folded(fold(Hand().eval(), torch.randn(IMAGE)))


def test_a_model_in_train_mode() -> None:
    """It is captured in eval mode from a copy; the original keeps its mode, parameters and statistics."""
    net = perturb(nn.Sequential(conv(), BN(4), nn.Dropout(0.5), Residual()))
    net.train()
    net[3].norm1.eval()  # type: ignore[index]
    state, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    graph = capture(net, (torch.randn(IMAGE),))
    folded(judge(graph, "canonicalize,fold-affine,restore"))
    assert [part.training for part in net.modules()] == modes
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert any("train mode" in note for note in graph.notes)
    torch.testing.assert_close(graph(*graph.args), copy.deepcopy(net).eval()(*graph.args))


# -- positions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", ["positive", "mixed"])
def test_conv_relu_norm_maxpool_conv(signs: str) -> None:
    net = perturb(
        Compose(
            lambda m, x: m.b(F.max_pool2d(m.norm(F.relu(m.a(x))), 3, 2, 1)),
            a=conv(),
            norm=BN(4),
            b=conv(4, 4, 1),
        )
    )
    if signs == "positive":
        for _, norm in batch_norms(net):
            norm.weight.data.abs_()  # type: ignore[operator]
        folded(fold(net, torch.randn(IMAGE)))
    else:
        declines(fold(net, torch.randn(IMAGE)), "NF106")


def test_norm_after_concat() -> None:
    folded(
        run(
            lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)),
            a=conv(4, 3),
            b=conv(4, 2),
            norm=BN(5),
        )
    )


def test_norm_on_half_the_channels() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        left, right = torch.split(m.conv(x), [2, 2], 1)
        return m.out(torch.cat([m.instance(left), m.norm(right)], 1))

    parts: dict[str, Any] = {"instance": nn.InstanceNorm2d(2, affine=True), "norm": BN(2)}
    outcome = folded(run(wiring, conv=conv(), out=conv(4, 4, 1), **parts))
    assert ways(outcome) == {"norm": "backward", "instance": "forward"}
    assert outcome.ops().count("instance_norm") == 1


def _excite(m: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))))


def test_norm_between_conv_and_gate() -> None:
    parts: dict[str, Any] = {"down": conv(4, 2, 1), "up": conv(2, 4, 1)}
    folded(run(lambda m, x: _excite(m, m.norm(m.conv(x))), conv=conv(), norm=BN(4), **parts))


def test_norm_between_relu_and_gate() -> None:
    """The scale goes on into both readers; the shift cannot pass the product."""
    parts: dict[str, Any] = {"down": conv(4, 2, 1), "up": conv(2, 4, 1), "out": conv(4, 4, 1)}
    outcome = run(lambda m, x: m.out(_excite(m, m.norm(F.relu(x)))), norm=BN(4), **parts)
    declines(outcome, "NF114")
    assert outcome.ops()[:2] == ["relu", "add"]


def test_norm_on_the_network_input() -> None:
    folded(run(lambda m, x: m.conv(m.norm(x)), norm=BN(4), conv=conv(padding=0)))


def test_residual_adds() -> None:
    outcome = fold(
        perturb(nn.Sequential(conv(), BN(4), nn.ReLU(), Residual(), Residual())), torch.randn(IMAGE)
    )
    assert outcome.ops().count("conv2d") == 5
    folded(outcome)


@pytest.mark.parametrize("beside", [torch.neg, lambda y: y / 3, lambda y: -2 * y])
def test_norm_beside_a_multiple_of_what_it_reads(beside: Callable[[Tensor], Tensor]) -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        y = F.gelu(m.conv(x))
        return m.out(m.norm(y) + beside(y))

    folded(run(wiring, conv=conv(), norm=BN(4), out=conv(4, 4, 1)))


def test_norm_behind_a_sum() -> None:
    folded(run(lambda m, x: m.norm(m.a(x) - m.b(F.relu(x))), a=conv(), b=conv(), norm=BN(4)))


def test_norm_behind_a_sum_with_the_input() -> None:
    declines(run(lambda m, x: m.norm(m.a(x) + x), a=conv(), norm=BN(4)), "NF104")


# -- zero padding -----------------------------------------------------------------------------------

FIXED = {
    ("cheapest", 4): ["relu", "conv2d", "add"],
    ("cheapest", 8): ["relu", "add", "conv2d"],
    ("map", 4): ["relu", "conv2d", "add"],
    ("map", 8): ["relu", "conv2d", "add"],
    ("pad", 4): ["relu", "normfold::channel_pad", "conv2d"],
    ("pad", 8): ["relu", "normfold::channel_pad", "conv2d"],
    ("scale-only", 4): ["relu", "add", "conv2d"],
    ("scale-only", 8): ["relu", "add", "conv2d"],
}


@pytest.mark.parametrize("sizes", ["fixed", "dynamic"])
@pytest.mark.parametrize(("option", "narrow"), FIXED)
def test_zero_padding(option: str, narrow: int, sizes: str) -> None:
    """Which way the shift goes at a zero-padded convolution; a map needs fixed sizes."""
    wanted = FIXED[option, narrow]
    if sizes == "dynamic" and wanted[-1] == "add":
        wanted = FIXED["pad" if option == "map" else "scale-only", narrow]
    outcome = run(
        lambda m, x: m.conv(m.norm(F.relu(x))),
        f"zero-padding={option}",
        ANY_SIZE if sizes == "dynamic" else "batch",
        conv=conv(4, narrow),
        norm=BN(4),
    )
    assert outcome.ops() == wanted
    if wanted == ["relu", "add", "conv2d"]:
        declines(outcome, "NF114")
    else:
        folded(outcome)
    if sizes == "dynamic":  # captured at 2x4x5x6, right at another size
        right(
            judge(
                outcome.before,
                f"canonicalize,fold-affine{{zero-padding={option}}}",
                (torch.randn(3, 4, 9, 7),),
            )
        )


@pytest.mark.parametrize("option", ["cheapest", "map", "pad"])
def test_padding_twice(option: str) -> None:
    """F.pad in front of a convolution that pads again: the shift is missing on both borders."""
    net = Compose(
        lambda m, x: m.conv(F.pad(m.norm(F.relu(x)), (1, 0, 2, 0))), norm=BN(4), conv=conv()
    )
    folded(fold(perturb(net), torch.randn(IMAGE), options=f"zero-padding={option}"))


def test_a_dead_channel_has_no_pad_value() -> None:
    net = perturb(nn.Sequential(nn.ReLU(), BN(4), conv()))
    net[1].weight.data[2] = 0.0  # type: ignore[index]
    outcome = folded(fold(net, torch.randn(IMAGE), options="zero-padding=pad"))
    assert "normfold::channel_pad" not in outcome.ops()


# -- branches ---------------------------------------------------------------------------------------


def test_repvgg() -> None:
    net = perturb(nn.Sequential(conv(), nn.ReLU(), RepBlock(), nn.ReLU(), RepBlock()))
    outcome = folded(fold(net, torch.randn(IMAGE)))
    assert {ways(outcome)[f"{index}.identity"] for index in (2, 4)} == {
        "merged into a parallel branch"
    }


def test_mobileone() -> None:
    def wiring(m: Any, x: Tensor) -> Tensor:
        x = F.relu(x)
        return F.relu(m.norm1(m.a(x)) + m.norm2(m.b(x)) + m.skip(x))

    norms: dict[str, Any] = {name: BN(4) for name in ("norm1", "norm2", "skip")}
    outcome = folded(run(wiring, a=conv(groups=4, bias=False), b=conv(4, 4, 1, groups=4), **norms))
    assert outcome.ops() == ["relu", "conv2d", "conv2d", "add", "relu"]


def test_fastvit() -> None:
    """x + scale * (mixer(x) - norm(x)): the norm and x itself enter the mixer's centre tap."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm1, self.norm2 = conv(groups=4), BN(4), BN(4)
            self.gamma = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Any:
            x = F.relu(x)
            return x + self.gamma * (self.norm1(self.conv(x)) - self.norm2(x))

    outcome = folded(fold(perturb(Mixer()), torch.randn(IMAGE)))
    assert outcome.ops() == ["relu", "conv2d"]
