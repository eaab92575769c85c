"""merge-linear: adapters, branches of training and rows of linear ops become one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.passes.merge_linear import MergeLinear
from normfold.rewrite import parse, run_pipeline
from normfold.testing import no_op
from tests.nets import Compose, perturb
from tests.passes.judge import Outcome, golden_pass, judge, right

TEXT = "canonicalize,fold-affine,merge-linear"
Forward = Callable[[Any, Tensor], Tensor]
LINEAR = ("linear", "addmm", "matmul", "conv1d", "conv2d", "conv3d")


def merged(net: nn.Module, *shape: int, text: str = TEXT, dynamic: Any = "batch") -> Outcome:
    graph = capture(perturb(net), (torch.randn(shape),), dynamic=dynamic)
    outcome = right(judge(graph, text))
    assert certify(graph, outcome.after).ok
    return outcome


def linear_ops(outcome: Outcome) -> list[str]:
    return [name for name in outcome.ops() if name in LINEAR]


class Lora(nn.Module):
    """A layer with a low-rank adapter beside it."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.down, self.up, self.scale = base, down, up, scale
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.scale * self.up(self.down(self.dropout(x)))
        return y


def _point(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, **options)


def _tap(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


ADAPTERS: dict[str, tuple[Lora, tuple[int, ...]]] = {
    "linear": (Lora(nn.Linear(8, 6), nn.Linear(8, 2, False), nn.Linear(2, 6, False)), (2, 5, 8)),
    "biases": (Lora(nn.Linear(8, 6, False), nn.Linear(8, 2), nn.Linear(2, 6)), (2, 8)),
    "one": (Lora(nn.Linear(8, 6), nn.Linear(8, 2), nn.Linear(2, 6), 1.0), (2, 8)),
    "convolution": (
        Lora(_tap(4, 6), _tap(4, 2, bias=False), _point(2, 6, bias=False)),
        (2, 4, 6, 5),
    ),
    "pointwise first": (
        Lora(_tap(4, 6), _point(4, 2, bias=False), _tap(2, 6)),
        (2, 4, 6, 5),
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str) -> None:
    net, shape = ADAPTERS[name]
    assert len(linear_ops(merged(net, *shape))) == 1


def test_several_adapters() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) - self.b(self.a(x)) + self.d(self.c(x)) * 0.5
        return y

    parts = {"a": nn.Linear(6, 2), "b": nn.Linear(2, 6), "c": nn.Linear(6, 3), "d": nn.Linear(3, 6)}
    net = Compose(forward, base=nn.Linear(6, 6), **parts)
    assert len(linear_ops(merged(net, 2, 6))) == 1


@pytest.mark.parametrize("number", [1 / 3, 3, -0.7])
def test_numbers(number: float) -> None:
    """Products and quotients, of the whole and in between."""

    def forward(self: Any, x: Tensor) -> Tensor:
        low: Tensor = self.down(x) / number
        y: Tensor = self.base(x) / 7 - number * self.up(low) / 3
        return y

    parts = {"down": nn.Linear(6, 2), "up": nn.Linear(2, 6)}
    outcome = merged(Compose(forward, base=nn.Linear(6, 6), **parts), 2, 6)
    assert len(linear_ops(outcome)) == 1


def test_adapters_of_gpt2() -> None:
    """Its layers have their weights the other way round (`Conv1D`)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.addmm(self.bias, x, self.weight) + self.up(self.down(x))
        return y

    net = Compose(forward, down=nn.Linear(6, 2), up=nn.Linear(2, 4))
    net.weight, net.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
    assert len(linear_ops(merged(net, 3, 6))) == 1


class Branches(nn.Module):
    """RepVGG, ACNet: convolutions of one input, each with its BatchNorm, and the input's own."""

    def __init__(self, *kernels: tuple[int, int], identity: bool = True, **options: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, size, padding=((size[0] - 1) // 2, (size[1] - 1) // 2), **options),
                nn.BatchNorm2d(4),
            )
            for size in kernels
        )
        if identity:
            self.branches.append(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = sum((branch(x) for branch in self.branches[1:]), self.branches[0](x))
        return y.relu()


BRANCHES: dict[str, Branches] = {
    "RepVGG": Branches((3, 3), (1, 1)),
    "the small one first": Branches((1, 1), (3, 3)),
    "strided": Branches((3, 3), (1, 1), identity=False, stride=2),
    "groups": Branches((3, 3), (1, 1), groups=2),
    "ACNet": Branches((1, 3), (3, 3), (3, 1)),
    "MobileOne": Branches((3, 3), (3, 3), (1, 1), groups=4),
    "five": Branches((5, 5), (3, 3), (1, 1), identity=False),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name: str) -> None:
    outcome = merged(BRANCHES[name], 2, 4, 7, 6)
    assert outcome.ops() == ["conv2d", "relu"]


def test_at_free_sizes() -> None:
    sizes = torch.export.Dim("h", min=4, max=64), torch.export.Dim("w", min=4, max=64)
    outcome = merged(
        Branches((3, 3), (1, 1)), 2, 4, 7, 6, dynamic={"x": {2: sizes[0], 3: sizes[1]}}
    )
    assert outcome.ops() == ["conv2d", "relu"]


def _sum(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.a(x) + self.b(x)
    return y


def _conv(size: Any, padding: Any = 0, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, size, padding=padding, **options)


APART: dict[str, tuple[nn.Module, nn.Module, str]] = {
    "neither kernel covers the other": (_conv((1, 3), (0, 1)), _conv((3, 1), (1, 0)), "NF137"),
    "steps between the taps": (_conv(3, 1), _conv(3, 2, dilation=2), "NF137"),
    "a point of a strided one": (_conv(3, 1, stride=2), _conv(1, stride=2), ""),
    "groups": (_conv(3, 1), _conv(3, 1, groups=2), "NF137"),
}


@pytest.mark.parametrize("name", APART)
def test_kernels(name: str) -> None:
    a, b, code = APART[name]
    outcome = merged(Compose(_sum, a=a, b=b), 2, 4, 7, 7)
    assert (len(linear_ops(outcome)), outcome.codes) == ((2, {code}) if code else (1, set()))


def test_a_kernel_beside_the_middle_of_a_strided_one() -> None:
    """At 8 pixels both give four, at other sizes they would not."""
    net = Compose(_sum, a=_conv(3, 1, stride=2), b=_conv(2, 0, stride=2))
    assert len(linear_ops(merged(net, 2, 4, 8, 8))) == 2


def test_a_spread_kernel_covers_a_point() -> None:
    net = Compose(_sum, a=_conv(3, 2, dilation=2), b=_conv(1))
    assert len(linear_ops(merged(net, 2, 4, 7, 7))) == 1


def test_what_others_read_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b = self.b(x)
        y: Tensor = (self.a(x) + b) * b
        return y

    net = Compose(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    outcome = merged(net, 2, 4)
    assert (len(linear_ops(outcome)), outcome.codes) == (2, {"NF103"})


def test_products_from_the_left() -> None:
    """Over tokens, as in a mixer: in a row, and beside each other."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.up @ (self.down @ x) + (self.a @ x) * 2 + self.b @ x
        return y

    net = Compose(forward)
    for name, (rows, columns) in {"down": (7, 6), "up": (3, 7), "a": (3, 6), "b": (3, 6)}.items():
        setattr(net, name, nn.Parameter(torch.randn(rows, columns)))
    assert linear_ops(merged(net, 2, 6, 5)) == ["matmul"]


def test_integers_stay() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = 2 * (x @ self.a) + x @ self.b
        return y

    net = Compose(forward)
    for name in ("a", "b"):
        net.register_buffer(name, torch.randint(9, (4, 3)))
    graph = capture(net, (torch.randint(9, (2, 4)),))
    after, reports = run_pipeline(graph, parse(TEXT))
    assert not reports[-1].modified
    assert torch.equal(after.module(*graph.args), graph.module(*graph.args))


@pytest.mark.parametrize("scale", [1e-3, 1e-30])
def test_a_base_with_a_number(scale: float) -> None:
    """The number goes into its weight; the other is not divided by it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = scale * self.a(x) + self.b(x) + self.c(x)
        return y

    net = Compose(forward, a=_tap(4, 3), b=_point(4, 3), c=_point(4, 3, bias=False))
    outcome = merged(net, 2, 4, 5, 6)
    assert outcome.ops() == ["conv2d"]
    weights = [node for node in outcome.baked.nodes if "weight" in str(node.target)]
    assert all(outcome.baked.value(node).abs().max() < 100 for node in weights)


def test_an_adapter_of_an_adapter() -> None:
    """What is one op behind the first round is beside another in the second."""

    def forward(self: Any, x: Tensor) -> Tensor:
        low: Tensor = self.a(x) + self.d(self.c(x))
        y: Tensor = (self.base(x) + self.b(low)) * 2 - self.e(x)
        return y

    sizes = {"base": (6, 6), "a": (6, 3), "b": (3, 6), "c": (6, 2), "d": (2, 3), "e": (6, 6)}
    net = Compose(forward, **{name: nn.Linear(*size) for name, size in sizes.items()})
    assert linear_ops(merged(net, 2, 6)) == ["linear"]


def test_a_multiple_that_others_read_stays() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = 3 * self.a(x)
        return self.b(h), h

    outcome = merged(Compose(forward, a=nn.Linear(8, 4), b=nn.Linear(4, 4)), 2, 8)
    assert len(linear_ops(outcome)) == 2


def test_lists_of_one_number() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.a.weight, self.b.weight
        return F.conv2d(x, a, padding=[1], stride=[1]) + F.conv2d(x, b)

    net = Compose(forward, a=_tap(4, 3, bias=False), b=_point(4, 3, bias=False))
    assert len(linear_ops(merged(net, 2, 4, 5, 6))) == 1


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "alpha": lambda a, b: torch.add(a, b, alpha=2.0),
    "a share": lambda a, b: torch.add(a, b, alpha=0.3),
    "nothing": lambda a, b: torch.add(a, b, alpha=0),
    "alpha of the first": lambda a, b: torch.add(b, a, alpha=0.5),
    "itself": lambda a, b: (a + a) + b,
    "in place": lambda a, b: a.add_(b),
    "turned": lambda a, b: torch.rsub(a, b),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str) -> None:
    """Whether they merge or not, they are right."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return SUMS[name](self.a(x), self.b(x))

    outcome = merged(Compose(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), 2, 4)
    left = {"itself": 2, "nothing": 2, "turned": 2}.get(name, 1)
    assert len(linear_ops(outcome)) == left


def test_a_sum_that_widens() -> None:
    outcome = merged(Compose(_sum, a=nn.Linear(4, 1), b=nn.Linear(4, 4)), 2, 4)
    assert (len(linear_ops(outcome)), outcome.codes) == (2, {"NF137"})


def test_rows() -> None:
    """From narrow to wide by a wide one is dearer apart, through a bottleneck it is dearer together."""
    net = nn.Sequential(
        nn.Linear(4, 8), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 1), nn.Linear(1, 9)
    )
    outcome = merged(net, 2, 4)
    assert [op for op in outcome.ops() if op in LINEAR] == ["linear"] * 3
    assert outcome.codes == {"NF122"}
    (declined,) = outcome.declined
    assert declined.detail == "27 weights in place of 12"


def test_three_in_a_row() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4))
    assert linear_ops(merged(net, 2, 3, 4)) == ["linear"]


ROWS: dict[str, tuple[list[nn.Module], int]] = {
    "pointwise behind": ([_tap(4, 8), _point(8, 3)], 1),
    "pointwise before": ([_point(4, 8, bias=False), _tap(8, 3, stride=2)], 1),
    "a bias before zeros": ([_point(4, 8), _tap(8, 3)], 2),
    "a bias and no zeros": ([_point(4, 8), nn.Conv2d(8, 3, 3)], 1),
    "two kernels": ([_tap(4, 8), _tap(8, 3)], 2),
    "a strided point": ([_tap(4, 8), _point(8, 3, stride=2)], 2),
    "a strided point behind a point": ([_point(4, 8), _point(8, 3, stride=2)], 1),
    "zeros around a point": ([_point(4, 8, bias=False), _point(8, 3, padding=1)], 1),
    "groups": ([_tap(4, 8, groups=2), _point(8, 3)], 2),
    "transposed": ([nn.ConvTranspose2d(4, 8, 2), _point(8, 3)], 1),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_convolutions(name: str) -> None:
    ops, left = ROWS[name]
    assert len(linear_ops(merged(nn.Sequential(*ops), 2, 4, 7, 6))) == left


def test_volumes() -> None:
    net = Lora(
        nn.Conv3d(2, 4, 3, padding="same"), nn.Conv3d(2, 1, 3, padding=1), nn.Conv3d(1, 4, 1)
    )
    assert linear_ops(merged(net, 2, 2, 4, 5, 3)) == ["conv3d"]


def test_shared_weights() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.base(torch.relu(self.base(x) + self.up(self.down(x))))
        return y

    def net() -> nn.Module:
        parts = {"down": nn.Linear(4, 2), "up": nn.Linear(2, 4)}
        return Compose(forward, base=nn.Linear(4, 4), **parts)

    assert len(linear_ops(merged(net(), 2, 4))) == 2
    text = TEXT.replace("merge-linear", "merge-linear{copy-shared=false}")
    outcome = merged(net(), 2, 4, text=text)  # the adapter becomes one layer, beside its base
    assert (len(linear_ops(outcome)), "NF102" in outcome.codes) == (3, True)


def test_what_is_known_of_sums_is_that_of_their_numbers() -> None:
    """Statistics of a norm behind the sum stay with it, none lands on another summand."""

    def forward(self: Any, x: Tensor, z: Tensor) -> Tensor:
        y: Tensor = self.norm((self.b(x) + self.c(z)) + self.a(x))
        return y

    net = Compose(
        forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)
    )
    from normfold.ir.statistics import statistics_of

    graph = capture(perturb(net), (torch.randn(3, 4), torch.randn(3, 4)))
    after, _ = run_pipeline(graph, parse("canonicalize,fold-affine,merge-linear"))
    known = [node for node in after.nodes if statistics_of(node) is not None]
    assert [node.op for node in known] == ["call_function"]
    assert known[0].target is torch.ops.aten.add.Tensor
    assert certify(graph, after).ok


def test_what_does_not_concern_it() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    no_op(MergeLinear(), net, (torch.randn(2, 4),))


def test_golden() -> None:
    torch.manual_seed(0)
    net = Lora(nn.Linear(8, 6), nn.Linear(8, 2, False), nn.Linear(2, 6, False))
    graph = capture(perturb(net), (torch.randn(2, 8),))
    golden_pass("merge-linear/lora", graph, "canonicalize,fold-affine")
