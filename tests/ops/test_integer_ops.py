"""Values on grids: gradients pass straight through, and baked integers hold the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.domains.observed import measure
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ops.integer_ops import dequantize, on_dynamic_grid, on_grid, quantize, to_steps
from normfold.ranges.ranges import merge_ranges
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.baker import needs_baking
from normfold.targets.onnx import export_onnx
from tests.nets import Compose, perturb

X = torch.randn(16, 3, 9, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        Compose(
            lambda m, x: m.head(F.relu(m.second(F.relu(m.first(x)))).mean((2, 3))),
            first=nn.Conv2d(3, 8, 3),
            second=nn.Conv2d(8, 8, 3, groups=2, bias=False),
            head=nn.Linear(8, 5),
        )
    )


def quantised(text: str, module: nn.Module | None = None, x: Tensor = X) -> Graph:
    graph = capture(module or net(), (x,))
    graph.samples = [((x,), {})]
    merge_ranges(measure(graph, [(x,)]), {})
    return run_pipeline(graph, parse(text))[0]


PIPELINES = [
    "quantize-weights",
    "quantize-weights{bits=3 rounding=squant}",
    "quantize-weights{bits=4 block=16 rounding=squant},quantize-weights",
    "quantize-weights,quantize-activations",
    "quantize-weights,quantize-activations{target=trt}",
    "quantize-weights{bits=4},quantize-activations{bits=4}",
    "quantize-weights{bits=3},quantize-activations,correct-bias{heads=true}",
    "quantize-dynamic",
]


@pytest.mark.parametrize("text", PIPELINES)
def test_baked_integers_hold_what_the_floats_were_rounded_to(text: str) -> None:
    graph = quantised(text)
    baked, reports = run_pipeline(graph, parse("bake"))
    assert reports[-1].modified
    stored = [value for value in baked.module.state_dict().values() if value.dtype == torch.int8]
    assert any(value.numel() > 1 for value in stored)
    with torch.no_grad():
        torch.testing.assert_close(baked(X), graph(X), rtol=1e-4, atol=1e-4)
    again, _ = run_pipeline(baked, parse("bake"))
    assert {name: value.dtype for name, value in again.module.state_dict().items()} == {
        name: value.dtype for name, value in baked.module.state_dict().items()
    }, "integers stay integers"


@pytest.mark.parametrize("text", PIPELINES)
def test_it_trains_until_it_is_baked(text: str) -> None:
    """Gradients reach every parameter of the float network, and lead down."""
    graph, wanted = quantised(text), net()(X).detach() / 2 + 0.3
    parameters = [graph.module.get_parameter(name) for name, _ in graph.module.named_parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (graph.module(X) - wanted).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("shape", "scale_shape", "dim", "block"),
    [
        ((6, 5), (), None, 0),
        ((6, 5), (6,), 0, 0),
        ((6, 5), (5,), 1, 0),
        ((32, 5), (2, 5), 0, 16),
        ((40, 3), (3, 3), 0, 16),
    ],
)
def test_the_gradients_are_those_of_learned_step_sizes(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], dim: int | None, block: int
) -> None:
    """Of x: 1 on the grid, 0 where it is clipped. Of the scale: q - x / s on it, q where it is clipped."""
    generator = torch.Generator().manual_seed(1)
    x = (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    scale = (
        0.3 + torch.rand(scale_shape, generator=generator, dtype=torch.float64)
    ).requires_grad_()
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    (on_grid(x, scale, None, dim, block, -7, 7, "nearest") * weights).sum().backward()
    wide = scale
    if block:
        wide = scale.repeat_interleave(block, 0)[: shape[0]]
    elif dim is not None:
        wide = scale.reshape([-1 if at == dim else 1 for at in range(2)])
    v = x / wide
    clipped = v.round().abs() > 7
    assert clipped.any()
    assert not clipped.all()
    straight = v + (v.round() - v).detach()
    by_hand = (torch.where(clipped, 7 * v.sign().detach(), straight) * wide * weights).sum()
    wanted = torch.autograd.grad(by_hand, (x, scale))
    torch.testing.assert_close(x.grad, wanted[0])
    torch.testing.assert_close(scale.grad, wanted[1])


def test_a_zero_point_shifts_what_is_clipped() -> None:
    x = torch.tensor([-3.0, -0.4, 0.6, 9.0], requires_grad=True)
    zero = torch.tensor(2, dtype=torch.uint8)
    result = on_grid(x, torch.tensor(1.0), zero, None, 0, 0, 10, "nearest")
    assert result.tolist() == [-2.0, 0.0, 1.0, 8.0]
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_integers_of_an_activation(dtype: torch.dtype) -> None:
    x, scale, zero = (
        X.to(dtype),
        torch.tensor(0.02, dtype=dtype),
        torch.tensor(128, dtype=torch.uint8),
    )
    q = quantize(x, scale, zero, None)
    assert q.dtype == torch.uint8
    assert torch.equal(
        dequantize(q, scale, zero, None, 0, 8), on_grid(x, scale, zero, None, 0, 0, 255, "nearest")
    )


def test_a_bias_fills_32_bits() -> None:
    bias, scale = torch.tensor([1e30, -1.0], dtype=torch.float32), torch.tensor([1e-9, 0.25])
    steps = to_steps(bias, scale, None, 0, 0, -(2**31) + 1, 2**31 - 1, "nearest")
    assert (steps.dtype, steps.tolist()) == (torch.int32, [2**31 - 1, -4])


def test_a_dynamic_grid_has_its_gradient() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    on_dynamic_grid(x).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(1).all()


def test_float64_networks() -> None:
    module: Any = net().double()
    for text in ("quantize-weights", "quantize-weights,quantize-activations", "quantize-dynamic"):
        graph = quantised(f"{text},bake", module, X.double())
        assert graph(X.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "text",
    [
        "quantize-weights",
        "quantize-dynamic",
        "quantize-weights{bits=4},quantize-activations{bits=4},bake",
    ],
)
def test_what_is_not_stored_is_not_written(text: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="not stored as integers"):
        export_onnx(quantised(text), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_one_baking_at_the_end_is_enough() -> None:
    """Folded and rounded weights are one expression; a graph that was baked is baked again."""
    folding = "canonicalize,fold-affine,restore"
    once = quantised(f"{folding},quantize-weights{{bits=4}}")
    twice = quantised(f"{folding},bake,quantize-weights{{bits=4}}")
    assert needs_baking(once)
    assert needs_baking(twice)
    results = [run_pipeline(graph, parse("bake"))[0] for graph in (once, twice)]
    assert not any(needs_baking(graph) for graph in results)
    with torch.no_grad():
        torch.testing.assert_close(results[0](X), results[1](X))


def test_the_nearest_of_all_8_bit_floats() -> None:
    """Ties to the even mantissa; beyond the ends are the ends. The codes are decoded by hand."""
    code = torch.arange(256)
    sign, exponent, mantissa = 1 - 2 * (code >> 7), (code >> 3) & 15, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = (sign * torch.where(exponent > 0, normal, mantissa * 2.0**-9)).double()
    real = (code & 127) != 127  # NaN
    value, odd = value[real], (mantissa[real] % 2).double()
    between = (value.unique()[1:] + value.unique()[:-1]) / 2
    x = torch.cat([torch.randn(500).double() * 10.0 ** torch.linspace(-4, 4, 500), between, value])
    distance = (x[:, None] - value).abs() + 1e-12 * odd
    wanted = value[distance.argmin(1)]
    got = on_grid(x, torch.tensor(1.0).double(), None, None, 0, -448, 448, "e4m3")
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("power", [-10, 0, 3])
def test_a_power_of_two_rounds_alike_in_every_type(dtype: torch.dtype, power: int) -> None:
    """What is stored of half precision is what float64 rounds, divided by the scale or multiplied by 1 / scale."""
    x = (X.half().flatten()[:200] * 2.0**power).to(dtype)
    scale, zero = torch.tensor(2.0**power, dtype=dtype), torch.zeros((), dtype=torch.float8_e4m3fn)
    q = quantize(x, scale, zero, None)
    assert q.dtype == torch.float8_e4m3fn
    assert torch.equal(q.view(torch.uint8), (x * (1 / scale)).to(q.dtype).view(torch.uint8))
    exact = on_grid(x.double(), scale.double(), zero, None, 0, -448, 448, "e4m3")
    assert torch.equal(dequantize(q, scale, zero, None, 0, 8).double(), exact)


def test_8_bit_floats_have_a_gradient() -> None:
    x = torch.tensor([-900.0, -0.3, 0.7, 449.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    result = on_grid(x, scale, None, None, 0, -448, 448, "e4m3")
    assert result.tolist() == [-448.0, -0.3125, 0.6875, 448.0]
    result.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert float(scale.grad) == pytest.approx(-0.3125 + 0.3 + 0.6875 - 0.7, abs=1e-4)
