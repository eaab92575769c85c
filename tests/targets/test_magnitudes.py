"""What is measured of a network: magnitudes, masks, squares and powers, and nothing kept in memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator
from normfold.ir.graph import op_name
from normfold.targets.magnitudes import Extent, measure


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def traced(function: Any, x: Tensor) -> Graph:
    net = function if isinstance(function, nn.Module) else Function(function)
    return capture(net.eval(), (x,), dynamic=None)


def extent(function: Any, op: str, *inputs: Tensor) -> Extent:
    """The extent of the one op of that name."""
    graph = traced(function, inputs[0])
    found = measure(graph.module, [(x,) for x in inputs])
    (node,) = [node for node in graph.nodes if op_name(node) == op]
    return found[node]


def data(scale: float = 1.0, shift: float = 0.0) -> Tensor:
    noise = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    return noise * scale + shift


def test_the_largest_magnitude_is_of_either_sign_and_over_every_input() -> None:
    low, high = torch.tensor([[-7.0, 2.0]]), torch.tensor([[-1.0, 5.0]])
    assert extent(lambda x: x * 2, "mul", low) == Extent(14.0)
    assert extent(lambda x: x * 2, "mul", high) == Extent(10.0)
    assert extent(lambda x: x * 2, "mul", low, high) == Extent(14.0)
    assert extent(lambda x: x * 2, "mul", high, low) == Extent(14.0)
    assert extent(lambda x: x.split(1, -1), "split", high) == Extent(5.0)
    assert extent(lambda x: x[:0] * 2, "mul", high) == Extent()


@pytest.mark.parametrize("least", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_what_stands_for_minus_infinity_is_no_magnitude(least: float) -> None:
    x = torch.tensor([[3.0, -4.0, 1.0]])
    found = extent(lambda x: x.masked_fill(x > 2, least), "masked_fill", x)
    assert found == Extent(4.0, masked=True)
    assert extent(lambda x: torch.full_like(x, least), "full_like", x) == Extent(0.0, masked=True)


def test_large_values_of_either_sign_are_magnitudes() -> None:
    x = torch.tensor([[1.0, -2.0]])
    assert extent(lambda x: x * 1e7, "mul", x) == Extent(2e7)
    assert extent(lambda x: x * -1e10, "mul", x).largest == pytest.approx(2e10)
    assert extent(lambda x: x / 0, "div", x) == Extent(0.0, masked=True)
    assert extent(lambda x: x * math.nan, "mul", x) == Extent()


NORMS: dict[str, tuple[nn.Module, list[int], bool]] = {
    "layer_norm": (nn.LayerNorm(4, eps=1e-3), [-1], True),
    "layer_norm-2d": (nn.LayerNorm((5, 4), eps=1e-3), [-2, -1], True),
    "rms_norm": (nn.RMSNorm(4, eps=1e-3), [-1], False),
    "rms_norm-2d": (nn.RMSNorm((5, 4), eps=1e-3), [-2, -1], False),
    "group_norm": (nn.GroupNorm(6, 6, eps=1e-3), [2, 3], True),
    "instance_norm": (nn.InstanceNorm2d(6, eps=1e-3), [2, 3], True),
}


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_has_squares_and_a_power(name: str, dtype: torch.dtype) -> None:
    net, dims, centred = NORMS[name]
    x = data(3.0, -2.0).to(dtype)
    found = extent(net.to(dtype), name.split("-")[0], x)
    wide = x.double()
    if centred:
        wide = wide - wide.mean(dims, keepdim=True)
    assert found.square == pytest.approx(float(wide.abs().max() ** 2), rel=1e-5)
    assert found.power == pytest.approx(float((wide**2).mean(dims).min()) + 1e-3, rel=1e-5)


def test_groups_are_normalised_each_by_itself() -> None:
    x = data() * torch.tensor([1.0, 1, 1, 10, 10, 10])[:, None, None]
    found = extent(nn.GroupNorm(2, 6), "group_norm", x)
    wide = x.double().reshape(2, 2, -1)
    wide = wide - wide.mean(-1, keepdim=True)
    assert found.power == pytest.approx(float((wide**2).mean(-1).min()) + 1e-5, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_eps_of_none_is_that_of_the_type(dtype: torch.dtype) -> None:
    found = extent(nn.RMSNorm(4), "rms_norm", torch.zeros(2, 4, dtype=dtype))
    assert found.power == torch.finfo(dtype).eps


LENGTHS = {
    "var": lambda x: x.var(-1),
    "var-all": lambda x: torch.var(x),
    "std": lambda x: x.std((1, 2), correction=0),
    "var_mean": lambda x: torch.var_mean(x, -1)[0],
    "std_mean": lambda x: torch.std_mean(x, -1)[0],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_variances_square_what_is_centred(name: str) -> None:
    x = data(2.0, 500.0)
    found = extent(LENGTHS[name], name.split("-")[0], x)
    assert 4.0 < found.square < 16 * 16
    assert found.power == math.inf


def test_lengths_square_what_is_there() -> None:
    x = data(2.0, 500.0)
    largest = float(x.abs().max())
    for function in (
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: x.norm(dim=(1, 2)),
        lambda x: F.normalize(x, dim=1),
    ):
        assert extent(function, "linalg_vector_norm", x).square == pytest.approx(largest**2)
    for order in (1, math.inf):
        found = extent(lambda x, p=order: torch.linalg.vector_norm(x, p), "linalg_vector_norm", x)
        assert found.square == 0


def test_values_go_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one value of a chain is alive when the next is made, whatever was measured of it."""
    alive: list[weakref.ref[Tensor]] = []
    most = [0]
    run_node = Evaluator.run_node

    def counted(self: Any, n: fx.Node) -> Any:
        result = run_node(self, n)
        if n.op == "call_function":
            alive.append(weakref.ref(result))
            most[0] = max(most[0], sum(ref() is not None for ref in alive))
        return result

    monkeypatch.setattr(Evaluator, "run_node", counted)

    def chain(x: Tensor) -> Tensor:
        for _ in range(20):
            x = F.layer_norm(torch.tanh(x), (4,))
        return x

    graph = traced(chain, data())
    found = measure(graph.module, [(data(),), (data(2.0),)])
    assert len(found) == 41
    assert most[0] <= 2
