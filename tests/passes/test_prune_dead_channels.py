"""Dead channels go, exactly: behind gains of 0, through activations, sums, gates, pools, channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.rewrite.pruning import linears
from tests.nets import Compose, perturb
from tests.passes.judge import Outcome, golden_pass, judge, right

IMAGES = torch.randn(2, 3, 9, 8)
TEXT = "canonicalize,fold-affine,prune-dead-channels,restore"
DEAD = [1, 4, 5]


def kill(norm: Any, channels: list[int] = DEAD, bias: bool = True) -> None:
    """Gains of exactly 0; with ``bias`` False the channels are 0 and not only constant."""
    with torch.no_grad():
        norm.weight[channels] = 0
        if not bias:
            norm.bias[channels] = 0


def pruned(net: nn.Module, *inputs: Tensor) -> Outcome:
    return right(judge(capture(net, inputs or (IMAGES,)), TEXT))


def sizes(outcome: Outcome) -> list[tuple[int, ...]]:
    """Shapes of the weights of the baked graph's linear ops."""
    return [tuple(linear.weight.meta["val"].shape) for linear in linears(outcome.baked)]


def plain(self: Any, x: Tensor) -> Any:
    return self.last(torch.relu(self.norm(self.first(x))))


def two(padding: int, bias: bool, last: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    net = perturb(
        Compose(
            plain,
            first=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            last=last or nn.Conv2d(8, 5, 3, padding=padding),
        )
    )
    kill(net.norm, bias=bias)
    return net


def test_constants_go_into_the_bias_of_what_reads_them() -> None:
    assert sizes(pruned(two(0, bias=True))) == [(5, 3, 3, 3), (5, 5, 3, 3)]


def test_zeros_go_at_borders_too_and_constants_stay_there() -> None:
    assert sizes(pruned(two(1, bias=False))) == [(5, 3, 3, 3), (5, 5, 3, 3)]
    net = two(1, bias=True)
    with torch.no_grad():
        net.norm.bias[DEAD] = torch.tensor([0.5, -0.5, 0.7])
    found = sizes(pruned(net))
    assert found == [(7, 3, 3, 3), (5, 7, 3, 3)]  # relu makes a zero of one of them


def test_what_follows_goes_too() -> None:
    """A channel of the second convolution that reads dead ones alone."""
    net = two(0, bias=False)
    torch.manual_seed(1)
    third = perturb(nn.Conv2d(5, 4, 1))

    def forward(self: Any, x: Tensor) -> Any:
        return self.third(torch.relu(self.inner(x)))

    with torch.no_grad():
        weight = net.last.weight
        alive = [place for place in range(8) if place not in DEAD]
        weight[2][alive] = 0
    outcome = pruned(Compose(forward, inner=net, third=third).eval())
    assert sizes(outcome) == [(5, 3, 3, 3), (4, 5, 3, 3), (4, 4, 1, 1)]


def test_what_nobody_reads() -> None:
    net = two(1, bias=True)
    with torch.no_grad():
        net.norm.weight.fill_(1.3)
        net.last.weight[:, [0, 6]] = 0
    assert sizes(pruned(net)) == [(6, 3, 3, 3), (5, 6, 3, 3)]


def residual(self: Any, x: Tensor) -> Any:
    y = self.norm(self.first(x))
    z = self.norm2(self.second(torch.relu(y)))
    return self.last(torch.relu(y + z))


@pytest.mark.parametrize("both", [True, False])
def test_a_sum_loses_what_is_dead_in_all_of_it(both: bool) -> None:
    torch.manual_seed(0)
    net = perturb(
        Compose(
            residual,
            first=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            second=nn.Conv2d(8, 8, 1),
            norm2=nn.BatchNorm2d(8),
            last=nn.Conv2d(8, 5, 1),
        )
    )
    kill(net.norm)
    if both:
        kill(net.norm2)
    found = sizes(pruned(net))
    assert found == (
        [(5, 3, 3, 3), (5, 5, 1, 1), (5, 5, 1, 1)]
        if both
        else [(8, 3, 3, 3), (8, 8, 1, 1), (5, 8, 1, 1)]
    )


def gated(self: Any, x: Tensor) -> Any:
    """Squeeze and excitation between depthwise convolutions, as in EfficientNet."""
    y = nn.functional.silu(self.norm(self.first(x)))
    y = nn.functional.silu(self.norm2(self.depthwise(y)))
    gate = torch.sigmoid(self.up(nn.functional.silu(self.down(y.mean((2, 3), keepdim=True)))))
    return self.last(y * gate)


def test_gates_and_depthwise_convolutions() -> None:
    torch.manual_seed(0)
    net = perturb(
        Compose(
            gated,
            first=nn.Conv2d(3, 8, 1),
            norm=nn.BatchNorm2d(8),
            depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            norm2=nn.BatchNorm2d(8),
            down=nn.Conv2d(8, 2, 1),
            up=nn.Conv2d(2, 8, 1),
            last=nn.Conv2d(8, 5, 1),
        )
    )
    kill(net.norm, bias=False)
    kill(net.norm2, bias=False)
    found = sizes(pruned(net))
    assert found == [(5, 3, 1, 1), (5, 1, 3, 3), (2, 5, 1, 1), (5, 2, 1, 1), (5, 5, 1, 1)]


OPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "pools": lambda self, x: self.last(
        nn.functional.adaptive_avg_pool2d(nn.functional.max_pool2d(x, 2), 1).flatten(1)
    ),
    "concatenated": lambda self, x: self.last(torch.cat([x, torch.tanh(x)], 1).mean((2, 3))),
    "reshaped": lambda self, x: self.last(x.reshape(len(x), 8, -1).transpose(1, 2).mean(1)),
    "hardswish": lambda self, x: self.last(nn.functional.hardswish(x).mean((2, 3))),
    "gelu and a number": lambda self, x: self.last((nn.functional.gelu(x) * 0.5 + 1).mean((2, 3))),
}


@pytest.mark.parametrize("name", OPS)
def test_ops_on_the_way(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return OPS[name](self, self.norm(self.first(x)))

    torch.manual_seed(0)
    width = 16 if name == "concatenated" else 8
    net = perturb(
        Compose(forward, first=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), last=nn.Linear(width, 4))
    )
    kill(net.norm)
    first, last = sizes(pruned(net))
    assert first == (5, 3, 3, 3)
    assert last == (4, width - 3 * (width // 8))


def test_linear_layers() -> None:
    torch.manual_seed(0)
    net: Any = perturb(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))
    )
    kill(net[1])
    assert sizes(pruned(net, torch.randn(4, 6))) == [(5, 6), (3, 5)]


def test_what_cannot_do_with_fewer_is_declined() -> None:
    """An output, a norm over the features, groups of them."""
    torch.manual_seed(0)
    groups = two(0, bias=False, last=nn.Conv2d(8, 4, 3, groups=2))
    outcome = pruned(groups)
    assert {item.code for item in outcome.declined} == {"NF108"}
    assert sizes(outcome)[0] == (8, 3, 3, 3)

    def shown(self: Any, x: Tensor) -> Any:
        y = torch.relu(self.norm(self.first(x)))
        return self.last(y), y

    net = two(0, bias=False)
    exposed = Compose(shown, first=net.first, norm=net.norm, last=net.last).eval()
    assert "NF104" in pruned(exposed).codes


def test_all_dead_leaves_one() -> None:
    net = two(0, bias=True)
    kill(net.norm, list(range(8)))
    assert sizes(pruned(net)) == [(1, 3, 3, 3), (5, 1, 3, 3)]


def test_golden() -> None:
    graph = capture(two(0, bias=True), (IMAGES,))
    golden_pass("prune-dead-channels/conv", graph, "canonicalize,fold-affine")


def slimmed(activation: type[nn.Module]) -> Any:
    """Blocks as in MobileNetV2, with gains of 0 and biases of both signs there."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, deep in ((3, 8), (8, 8)):
        layers += [nn.Conv2d(wide, deep, 1), nn.BatchNorm2d(deep), activation()]
        layers += [
            nn.Conv2d(deep, deep, 3, padding=1, groups=deep),
            nn.BatchNorm2d(deep),
            activation(),
        ]
        layers += [nn.Conv2d(deep, 8, 3, padding=1), nn.BatchNorm2d(8)]
    net: Any = perturb(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    )
    for place, layer in enumerate(net):
        if isinstance(layer, nn.BatchNorm2d):
            kill(layer, [place % 3, 3 + place % 2, 6], bias=place % 2 == 0)
    return net


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Tanh])
def test_it_is_certified(activation: type[nn.Module]) -> None:
    """Zeros that hold by the values of weights alone would not be."""
    outcome = pruned(slimmed(activation), torch.randn(2, 3, 9, 8))
    report = next(item for item in outcome.reports if item.name == "prune-dead-channels")
    assert report.applied
    found = certify(outcome.before, outcome.after)
    assert found.state == "certified", found.outputs
