"""UN and PowerNorm against the published formulas, step by step through warm-up, window, outliers and gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normfold.errors import UsageError
from normfold.nn import UN, PowerNorm
from tests.nn import reference
from tests.nn.norms import norm_of, tokens

C = 4


def walk(
    norm: UN | PowerNorm, twin: reference.Unified | reference.Power, batches: list[Tensor]
) -> None:
    """A forward and a backward per batch through both; outputs, gradients and running values agree."""
    for step, rows in enumerate(batches):
        x = rows.movedim(-1, norm.axis).clone().requires_grad_()
        norm.zero_grad()
        y = norm(x)
        dy = tokens(*rows.shape, seed=100 + step).flatten(0, -2) / rows.shape[0]
        y.backward(dy.view(rows.shape).movedim(-1, norm.axis))
        assert x.grad is not None
        found = (
            y.movedim(norm.axis, -1).reshape(-1, C),
            x.grad.movedim(norm.axis, -1).reshape(-1, C),
            norm.weight.grad,
            norm.bias.grad,
        )
        for name, a, b in zip(
            ["y", "dx", "dw", "db"], found, twin.step(rows.flatten(0, -2), dy), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=f"{name} of step {step}")
        torch.testing.assert_close(norm.ema_gz, twin.ema, rtol=1e-10, atol=1e-12)
        assert int(norm.iters) == twin.t


def series(count: int, scales: dict[int, float]) -> list[Tensor]:
    """Batches of drifting scale; ``scales`` multiplies one channel of some of them."""
    found = []
    for step in range(count):
        x = tokens(3, 5, C, seed=step) * (1 + 0.1 * step)
        x[..., 1] *= scales.get(step, 1.0)
        found.append(x)
    return found


def un_pair(
    axis: int = -1, warmup: int = 5, filters: bool = True, exact: bool = True
) -> tuple[UN, reference.Unified]:
    norm = UN(
        C,
        window=3,
        warmup=warmup,
        momentum=0.8,
        outlier_filtration=filters,
        exact_warmup=exact,
        axis=axis,
        dtype=torch.float64,
    )
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 1.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0]))
    return norm, reference.Unified(
        norm.weight.detach(), norm.bias.detach(), 3, warmup, 0.8, filters, exact
    )


@pytest.mark.parametrize("axis", [-1, 1], ids=["last", "first"])
@pytest.mark.parametrize("filters", [True, False], ids=["filters", "smooths"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "released"])
def test_un_through_window_warmup_and_outliers(axis: int, filters: bool, exact: bool) -> None:
    norm, twin = un_pair(axis, filters=filters, exact=exact)
    walk(norm, twin, series(14, {8: 40.0, 9: 30.0}))
    torch.testing.assert_close(norm.running_var, twin.running, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.buffer_x2, twin.squares, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.buffer_gz, twin.corrections, rtol=1e-10, atol=1e-12)
    assert int(norm.skip_counter) == twin.skips
    assert 0 < twin.skips < 9 if filters else twin.skips == 0


def test_during_the_warmup_of_un_the_gradient_is_autograds() -> None:
    norm, _ = un_pair(warmup=5)
    for x in series(4, {}):
        x.requires_grad_()
        dy = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view_as(x)
        (mine,) = torch.autograd.grad(norm(x), x, dy)
        square = x.square().mean((0, 1))
        y = x * norm.weight / torch.sqrt(square + norm.eps) + norm.bias
        (exact,) = torch.autograd.grad(y, x, dy)
        # the published backward leaves out eps / (v + eps)
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-6)


def test_un_gates_the_gradient_after_a_thousand_steps() -> None:
    norm, twin = un_pair(filters=False)
    norm.iters.fill_(998)
    twin.t = 998
    walk(norm, twin, series(9, {4: 300.0, 7: 1e-6}))
    gates = torch.stack(twin.gates)
    assert bool((gates[:2] == 1).all())
    assert {0.2, 5.0} <= set(gates[2:].flatten().tolist())
    assert bool(((gates > 0.2) & (gates < 5) & (gates != 1)).any())


def test_un_leaves_the_gradient_of_an_outlier_ungated() -> None:
    norm, twin = un_pair(warmup=996)
    norm.iters.fill_(990)
    twin.t = 990
    walk(norm, twin, series(18, {14: 40.0}))
    assert twin.skips > 0
    assert any(bool((gate != 1).any()) for gate in twin.gates)


@pytest.mark.parametrize("kind", ["un", "powernorm"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflown_gradient_is_forgotten(kind: str, bad: float) -> None:
    """As under a GradScaler, which skips that optimizer step and goes on."""
    norm = norm_of(kind)
    for step in range(5):
        norm.zero_grad()
        x = tokens(3, 5, C, seed=step).requires_grad_()
        y = norm(x)
        dy = torch.ones_like(y)
        if step in (0, 3):
            dy[1, 2, 0] = bad
        y.backward(dy)
        assert x.grad is not None
        assert bool(x.grad.isfinite().all()) == (step not in (0, 3))
    assert all(bool(b.isfinite().all()) for b in norm.buffers())


def test_un_compares_with_a_full_window_only() -> None:
    norm, twin = un_pair(warmup=0)
    walk(norm, twin, series(3, {}))
    assert int(norm.skip_counter) == 0


@pytest.mark.parametrize("axis", [-1, 1], ids=["last", "first"])
def test_powernorm_through_its_warmup(axis: int) -> None:
    norm = PowerNorm(C, warmup=4, alpha_f=0.7, alpha_b=0.6, axis=axis, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 1.5]))
    twin = reference.Power(norm.weight.detach(), norm.bias.detach(), 4, 0.7, 0.6)
    walk(norm, twin, series(10, {2: 5.0, 7: 3.0}))
    torch.testing.assert_close(norm.running_var, twin.phi, rtol=1e-12, atol=0)


def test_powernorm_scales_groups_first() -> None:
    """The scaling is an ordinary function in front: autograd goes through it, the statistics are behind it."""
    norm = norm_of("powernorm groups")
    assert isinstance(norm, PowerNorm)
    twin = reference.Power(norm.weight.detach(), norm.bias.detach(), 2, 0.9, 0.9)
    for step in range(4):
        rows = tokens(3, 5, C, seed=step)
        x, flat = rows.clone().requires_grad_(), rows.reshape(-1, C).requires_grad_()
        dy = tokens(15, C, seed=50 + step)
        y = norm(x)
        y.backward(dy.view_as(rows))
        scaled = reference.group_scaling(flat, 2, norm.eps)
        wanted, dx, _, _ = twin.step(scaled.detach(), dy)
        scaled.backward(dx)
        assert x.grad is not None
        assert flat.grad is not None
        torch.testing.assert_close(y.reshape(-1, C), wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(x.grad.reshape(-1, C), flat.grad, rtol=1e-10, atol=1e-12)
    norm.eval()
    scale, shift = norm.affine()
    scaled = reference.group_scaling(flat.detach(), 2, norm.eps)
    torch.testing.assert_close(norm(flat), scaled * scale + shift, rtol=1e-12, atol=1e-12)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="two batches"):
        UN(C, window=1)
    with pytest.raises(UsageError, match="3 groups"):
        PowerNorm(C, groups=3)
