"""BatchNorm, RepBN and PRepBN against their formulas, in value, gradient and statistics."""

from __future__ import annotations

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn import BatchNorm, PRepBN, RepBN, valid_tokens
from tests.nn import reference
from tests.nn.norms import STATISTICAL, assert_same, norm_of, state, tokens, weighted_sum


def expected(norm: BatchNorm, x: Tensor, valid: Tensor) -> Tensor:
    """The formula over rows (T, C), for autograd."""
    y = reference.batch_norm(x, valid, norm.weight, norm.bias, norm.eps)
    if isinstance(norm, RepBN):
        y = y + norm.eta * x
    if isinstance(norm, PRepBN):
        old = reference.layer_norm(x, norm.ln_weight, norm.ln_bias, norm.ln_eps)
        y = norm.mix * old + (1 - norm.mix) * y
    return y


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("axis", [-1, 1, -3], ids=["last", "first", "middle"])
@pytest.mark.parametrize("kind", ["bn", "repbn", "prepbn"])
def test_training_is_the_formula(kind: str, axis: int, masked: bool) -> None:
    norm, twin = norm_of(kind, axis=axis), norm_of(kind, axis=axis)
    assert isinstance(norm, BatchNorm)
    assert isinstance(twin, BatchNorm)
    for step in range(3):
        rows = tokens(2, 3, 5, 4, seed=step)
        mask = torch.rand(2, 3, 5) > 0.4 if masked else torch.ones(2, 3, 5, dtype=torch.bool)
        x = rows.movedim(-1, axis).clone().requires_grad_()
        with valid_tokens(norm, mask) if masked else nullcontext():
            y = norm(x)
        weighted_sum(y.movedim(axis, -1)).backward()

        flat = rows.reshape(-1, 4).requires_grad_()
        wanted = expected(twin, flat, mask.flatten())
        weighted_sum(wanted).backward()
        real = flat.detach()[mask.flatten()]
        with torch.no_grad():
            twin.running_mean.mul_(0.9).add_(0.1 * real.mean(0))
            twin.running_var.mul_(0.9).add_(0.1 * real.var(0, correction=1))
        torch.testing.assert_close(y.movedim(axis, -1).reshape(-1, 4), wanted, rtol=0, atol=1e-12)
        assert x.grad is not None
        assert flat.grad is not None
        torch.testing.assert_close(
            x.grad.movedim(axis, -1).reshape(-1, 4), flat.grad, rtol=0, atol=1e-12
        )
        assert_same(state(norm), state(twin), 1e-11)


def test_repbn_is_one_batchnorm() -> None:
    """gain + eta s and bias + eta mu: the paper's lemma, in eval mode; torch's own norm plus eta x in training."""
    norm = norm_of("repbn")
    assert isinstance(norm, RepBN)
    plain = nn.BatchNorm1d(4, dtype=torch.float64)
    plain.load_state_dict({n: t for n, t in norm.state_dict().items() if n != "eta"}, strict=False)
    for seed in range(3):
        x = tokens(6, 5, 4, seed=seed)
        wanted = plain(x.flatten(0, 1)).view_as(x) + norm.eta * x
        torch.testing.assert_close(norm(x), wanted, rtol=0, atol=1e-12)
    norm.eval()
    plain.eval()
    with torch.no_grad():
        plain.weight.add_(norm.eta * torch.sqrt(norm.running_var + norm.eps))
        plain.bias.add_(norm.eta * norm.running_mean)
    torch.testing.assert_close(norm(x), plain(x.flatten(0, 1)).view_as(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_both_branches_get_gradients_at_every_mix(mix: float) -> None:
    norm = norm_of("prepbn")
    assert isinstance(norm, PRepBN)
    norm.mix.fill_(mix)
    x = tokens(3, 5, 4)
    y = norm(x)
    norm.mix.fill_(0.5)  # as DDP may when it broadcasts buffers for a second forward
    weighted_sum(y).backward()
    assert all(p.grad is not None for p in norm.parameters())
    layer = nn.LayerNorm(4, norm.ln_eps, dtype=torch.float64)
    layer.load_state_dict({"weight": norm.ln_weight, "bias": norm.ln_bias})
    is_layer_norm = torch.allclose(y, layer(x), rtol=0, atol=1e-12)
    assert is_layer_norm == (mix == 1)


def test_eval_mode_warns_once_while_the_layernorm_is_there() -> None:
    norm = nn.Sequential(PRepBN(4))
    with pytest.warns(UserWarning, match="still 100% LayerNorm"):
        norm.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm.train().eval()
        done = PRepBN(4)
        done.mix.fill_(0.0)
        done.eval()


def test_variance_survives_a_large_mean() -> None:
    norm = BatchNorm(4, momentum=1.0)
    x = (tokens(64, 64, 4) + 1e4).float()
    norm(x)
    wanted = x.double().flatten(0, 1).var(0)
    torch.testing.assert_close(norm.running_var.double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["bn", "prepbn", "un", "powernorm groups"])
def test_statistics_are_float32_under_autocast(kind: str) -> None:
    torch.manual_seed(0)
    norm = norm_of(kind, 8, dtype=torch.float32)
    linear = nn.Linear(8, 8)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    x = torch.randn(16, 50, 8) + 3
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(linear(x))
        y.float().square().mean().backward()
    assert seen[0].dtype == torch.float64
    assert y.dtype == torch.bfloat16
    assert all(b.dtype in (torch.float32, torch.int64) for b in norm.buffers())
    exact = norm_of(kind, 8)
    inputs = seen[0].clone().requires_grad_()
    exact(inputs).square().mean().backward()
    running = {n: b.double() for n, b in norm.named_buffers() if n.startswith("running")}
    wanted = {n: b for n, b in exact.named_buffers() if n.startswith("running")}
    # PowerNorm's groups are scaled in the precision of x
    assert_same(running, wanted, 2e-3 if kind == "powernorm groups" else 1e-6)
    assert linear.weight.grad is not None
    assert bool(linear.weight.grad.isfinite().all())


def test_a_bfloat16_norm_keeps_float32_statistics() -> None:
    norm = norm_of("prepbn", dtype=torch.bfloat16)
    assert norm.get_buffer("running_var").dtype == torch.float32
    x = tokens(8, 9, 4).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    norm.training = False
    assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["bn", "un", "powernorm"])
def test_what_cannot_be_measured_is_refused(kind: str) -> None:
    norm = norm_of(kind)
    with pytest.raises(UsageError, match="two tokens"):
        norm(tokens(1, 1, 4))
    with pytest.raises(UsageError, match="two tokens"):
        norm(tokens(0, 3, 4))
    with pytest.raises(UsageError, match="5 features along axis -1, not 4"):
        norm(tokens(2, 3, 5))
    norm.eval()
    assert norm(tokens(1, 1, 4)).shape == (1, 1, 4)


@pytest.mark.parametrize("kind", STATISTICAL)
def test_nothing_in_training_waits_for_the_device(kind: str) -> None:
    """Tensors without data: reading a value of one raises, as `.item()` and `if tensor` would."""
    norm = norm_of(kind).to("meta")
    x = torch.empty(3, 5, 4, dtype=torch.float64, device="meta", requires_grad=True)
    norm.mask = torch.empty(3, 5, dtype=torch.bool, device="meta")
    norm(norm(x)).sum().backward()
    assert x.grad is not None


def test_copies_know_neither_mask_nor_past() -> None:
    norm = norm_of("un")
    with valid_tokens(norm, torch.ones(3, 5, dtype=torch.bool)):
        norm(tokens(3, 5, 4))
        for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm_of("bn")))):
            assert twin.mask is None
            assert len(twin._memory) == 0
