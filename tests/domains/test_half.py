"""Running a graph with every square rounded to its type, and the distance that half precision is judged by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.domains.half import Strict
from normfold.ir import capture
from normfold.ir.evaluation import Evaluator
from normfold.judge import Verifier
from normfold.judge.comparison import distance
from tests.judge.nets import Small, Wrapped, images, nudged
from tests.nets import perturb

SINGLE = "x:1x3x6x7"  # a batch of one, of random numbers

SHAPE = (3, 6, 5, 4)
NORMS: dict[str, Any] = {
    "layer": lambda: nn.LayerNorm(4),
    "layer-2d": lambda: nn.LayerNorm((5, 4)),
    "layer-plain": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "layer-unbiased": lambda: nn.LayerNorm(4, bias=False),
    "rms": lambda: nn.RMSNorm(4),
    "rms-2d": lambda: nn.RMSNorm((5, 4), eps=1e-5),
    "group": lambda: nn.GroupNorm(3, 6),
    "group-plain": lambda: nn.GroupNorm(2, 6, affine=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance-plain": lambda: nn.InstanceNorm2d(6),
    "instance-frozen": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
}


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def strict(net: nn.Module, x: Tensor) -> list[Tensor]:
    return Evaluator(capture(net.eval(), (x,), dynamic=None).module, Strict())(x)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def data() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_norms_go_step_by_step_to_the_same_result(name: str, dtype: torch.dtype) -> None:
    net = perturb(NORMS[name]()).to(dtype)
    x = data().to(dtype)
    (result,) = strict(net, x)
    expected = net.double()(x.double())
    assert result.dtype is dtype
    assert distance(expected, result)[0] < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", [name for name in NORMS if name != "instance-frozen"])
def test_squares_overflow_where_torch_hides_it(name: str) -> None:
    net = perturb(NORMS[name]()).half()
    x = (data() * 300).half()
    x[0] /= 300
    expected, (result,) = net(x), strict(net, x)
    assert bool(expected.isfinite().all())
    assert distance(expected[0], result[0])[0] < 0.01
    assert distance(expected[1], result[1])[0] > 0.3  # divided by infinity
    torch.testing.assert_close(strict(net.float(), x.float())[0], net(x.float()))


LENGTHS = {
    "var": lambda x: x.var(-1),
    "var-keep": lambda x: torch.var(x, (1, 3), keepdim=True, correction=0),
    "std": lambda x: x.std(-1, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, -1)[0],
    "std_mean": lambda x: torch.std_mean(x, -1)[0],
    "length": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "length-keep": lambda x: torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
    "norm": lambda x: x.norm(dim=-1),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_squares_of_variances_and_lengths_overflow_too(name: str) -> None:
    net = Function(LENGTHS[name])
    x = data().half()
    torch.testing.assert_close(strict(net, x)[0], net(x))
    x[1] *= 300
    expected, (result,) = net(x), strict(net, x)
    torch.testing.assert_close(result[0], expected[0])
    assert bool(result[1].isinf().any())
    assert bool((result[1].isinf() | (result[1] == expected[1])).all())


def test_a_length_without_squares_does_not_overflow() -> None:
    net = Function(lambda x: torch.linalg.vector_norm(x, 1, dim=-1))
    x = (data() * 300).half()
    torch.testing.assert_close(strict(net, x)[0], net(x))


def test_a_variance_of_everything() -> None:
    net = Function(lambda x: x.var())
    assert bool(strict(net, (data() * 300).half())[0].isinf())
    torch.testing.assert_close(strict(net, data().half())[0], data().half().var())


# -- the distance -----------------------------------------------------------------------------------

Y = torch.tensor([3.0, -4.0])


@pytest.mark.parametrize(
    ("reference", "result", "error", "absolute"),
    [
        (Y, Y, 0.0, 0.0),
        (Y, torch.tensor([3.0, -3.0]), 0.2, 1.0),
        (Y, torch.tensor([0.0, 0.0]), 1.0, 4.0),
        (Y, torch.tensor([3.0, math.nan]), math.inf, math.inf),
        (Y, torch.tensor([3.0, -math.inf]), math.inf, math.inf),
        (torch.zeros(2), torch.tensor([0.0, 0.5]), 0.5, 0.5),
        (torch.zeros(0), torch.zeros(0), 0.0, 0.0),
        # infinities agree with infinities only
        (torch.tensor([4.0, math.inf]), torch.tensor([3.0, math.inf]), 0.25, 1.0),
        (torch.tensor([4.0, math.inf]), torch.tensor([4.0, -math.inf]), math.inf, math.inf),
        (torch.tensor([4.0, -math.inf]), torch.tensor([4.0, math.nan]), math.inf, math.inf),
        # masked logits are masked in whatever way the type has
        (torch.tensor([4.0, -1e9]), torch.tensor([4.0, -16376.0]), 0.0, 0.0),
        (torch.tensor([4.0, -1e9]), torch.tensor([4.0, -math.inf]), 0.0, 0.0),
        (torch.tensor([4.0, -math.inf]), torch.tensor([4.0, -16376.0]), 0.0, 0.0),
        (torch.tensor([4.0, -3e38]), torch.tensor([3.0, -16376.0]), 0.25, 1.0),
        (torch.tensor([4.0, -math.inf]), torch.tensor([4.0, -5.0]), math.inf, math.inf),
        # what is NaN in the original is not judged
        (torch.tensor([4.0, math.nan]), torch.tensor([3.0, 7.0]), 0.25, 1.0),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]), 0.25, 0.25),
        (torch.tensor([True, False]), torch.tensor([True, True]), 0.5, 0.5),
        (torch.tensor([3 + 4j]), torch.tensor([3 + 3j]), 0.2, 1.0),
    ],
)
def test_distances(reference: Tensor, result: Tensor, error: float, absolute: float) -> None:
    wide = reference.double() if reference.is_floating_point() else reference
    assert distance(wide, result) == pytest.approx((error, absolute))


# -- the verdict ------------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Small())


def test_typical_inputs_are_judged_against_the_budget() -> None:
    graph = capture(small(), (images(),))
    verifier = Verifier(graph)
    check = verifier.half("float16", graph, 0.02)
    assert check
    assert [item.inputs for item in check.outputs] == ["constant", SINGLE]
    assert {item.tolerance for item in check.outputs} == {0.02}
    damaged = verifier.half("float16", nudged(graph, "fc.weight", 10.0), 0.02)
    assert not damaged
    assert damaged.worst is not None
    assert damaged.worst.error > 0.02


@pytest.mark.parametrize(
    "change",
    [
        lambda y: [y],
        lambda y: [y, y[:1]],
        lambda y: [y, y[..., :1]],
        lambda y: [y, y * math.nan],
        lambda y: [y, y, y],
    ],
)
def test_outputs_that_are_missing_or_of_another_shape_fail(change: Any) -> None:
    net = Wrapped(small(), lambda y, x: (y, y * 2))
    verifier = Verifier(capture(net, (images(),)))
    right = verifier.outputs("tensorrt", lambda leaves: list(net(*leaves)), 0.02)
    assert right
    assert not verifier.outputs("tensorrt", lambda leaves: change(net(*leaves)[0]), 0.02)


def test_an_output_that_mixes_the_rows_is_judged_on_typical_inputs_only() -> None:
    """x100 would drown the rest of a sum over the batch; and it may overflow."""
    net = Wrapped(small(), lambda y, x: (y.transpose(0, 1), (y * y).sum(0)))
    graph = capture(net, (images(),))
    verifier = Verifier(graph)

    def rounded(leaves: Any) -> list[Tensor]:
        return [y.half().clamp(-90, 90).float() for y in net(*leaves)]

    assert max(float(y.abs().max()) for y in verifier.reference[0]) > 90
    check = verifier.outputs("tensorrt", rounded, 0.02)
    assert check.outputs
    assert check


def test_user_samples_are_judged_too() -> None:
    graph = capture(small(), (images(),))
    verifier = Verifier(graph, samples=[(images() * 2,)])
    check = verifier.half("float16", graph, 0.02)
    assert [item.inputs for item in check.outputs] == ["constant", "sample 0", SINGLE]
