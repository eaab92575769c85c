"""One parameter that scales or shifts a whole tensor: what is one, and that it folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from normfold.ir import capture
from normfold.ops.scalars import scalar_of
from tests.nets import Compose
from tests.passes.judge import judge, right

X = torch.randn(2, 3, 6, 5)
TEXT = "canonicalize,fold-affine,restore"


def conv(shape: tuple[int, ...]) -> Callable[[Any], nn.Module]:
    """A network of a convolution, an op with a parameter of a shape, and a linear layer."""

    def make(op: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
        def forward(self: Any, x: Tensor) -> Any:
            return self.last(op(self.first(x), self.number).mean((2, 3)))

        torch.manual_seed(0)
        net = Compose(forward, first=nn.Conv2d(3, 4, 3), last=nn.Linear(4, 2))
        net.number = nn.Parameter(torch.full(shape, -0.7))
        return net.eval()

    return make


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times": lambda x, c: x * c,
    "times, in front": lambda x, c: c * x,
    "over": lambda x, c: x / c,
    "plus": lambda x, c: x + c,
    "minus": lambda x, c: x - c,
    "with alpha": lambda x, c: torch.add(x, c, alpha=3),
}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("name", OPS)
def test_a_scalar_folds(name: str, shape: tuple[int, ...]) -> None:
    outcome = right(judge(capture(conv(shape)(OPS[name]), (X,)), TEXT))
    assert not any(scalar_of(node) for node in outcome.baked.nodes)
    assert outcome.ops().count("convolution") + outcome.ops().count("conv2d") == 1
    assert not {"mul", "div", "add", "sub"} & set(outcome.ops())


@pytest.mark.parametrize(
    "op",
    [
        lambda x, c: c / x,
        lambda x, c: c - x,
        lambda x, c: torch.div(x, c, rounding_mode="floor"),
        lambda x, c: x * 2,
        lambda x, c: x * x.mean() + 0 * c.int(),
    ],
)
def test_what_is_none(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    graph = capture(conv(())(op), (X,))
    assert not any(scalar_of(node) for node in graph.nodes)


def test_where_it_stays() -> None:
    """Behind a stream that is read elsewhere too, and in front of what is not linear."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.first(x)
        return y + torch.tanh(self.number * y)

    net = Compose(forward, first=nn.Conv2d(3, 4, 3))
    net.number = nn.Parameter(torch.tensor(0.3))
    outcome = right(judge(capture(net.eval(), (X,)), TEXT))
    kept: list[fx.Node] = [node for node in outcome.baked.nodes if scalar_of(node)]
    assert len(kept) == 1
