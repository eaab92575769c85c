"""Tuning: value and gradients of eval mode, less kept for the backward pass, the network's own state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normfold
from benchmarks.tuning import kept
from normfold.errors import UsageError
from tests.nets import Encoder, RepBlock, Residual, perturb

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Residual, (2, 4, 12, 12)),
    "repvgg": (RepBlock, (2, 4, 9, 9)),
    "norms in front of linear layers": (Encoder, (2, 5, 8)),
    "linear, BatchNorm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_value_and_gradients_are_those_of_eval_mode(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = perturb(build().double())
    original = copy.deepcopy(network)
    tuned = normfold.tune(network, (torch.randn(shape, dtype=torch.float64),)).train()
    assert tuned.folded
    x = torch.randn(shape, dtype=torch.float64)
    mine, theirs = tuned(x), original(x)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(theirs)
    (mine * weights).sum().backward()
    (theirs * weights).sum().backward()
    for (path, one), other in zip(network.named_parameters(), original.parameters(), strict=True):
        assert one.grad is not None, path
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_less_is_kept_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4)]
    network = nn.Sequential(*(layer for block in blocks for layer in block)).eval()
    x = torch.randn(8, 16, 24, 24)
    before = kept(network, x)
    tuned = normfold.tune(network, (x[:2],))
    assert kept(tuned, x) < 0.6 * before  # the results of the convolutions are not kept


def test_folded_weights_are_made_again_and_not_kept() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256)) for _ in range(4)]
    network, x = nn.Sequential(*layers).eval(), torch.randn(8, 256)
    tuned = normfold.tune(network, (x,))
    assert kept(tuned, x) < 256 * 256 * 4  # less than one of the weights


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    network = perturb(nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Tanh()).double())
    original = copy.deepcopy(network)
    x = torch.randn(4, 32, dtype=torch.float64, requires_grad=True)
    tuned = normfold.tune(network, (x.detach(),))
    found = []
    for net in (tuned, original):
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), list(net.parameters())))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_step_between_the_passes_is_an_error_as_ever() -> None:
    network = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)
    ).eval()
    tuned = normfold.tune(network, (torch.randn(4, 64),))
    loss = tuned(torch.randn(4, 64)).square().sum()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_steps_train_the_network_and_statistics_stay() -> None:
    torch.manual_seed(0)
    network = perturb(Residual())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tuned = normfold.tune(network, (torch.randn(2, 4, 12, 12),))
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    x = torch.randn(4, 4, 12, 12)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(x).square().mean().backward()
        optimizer.step()
    after = tuned.finalize()
    assert after.keys() == before.keys()
    trained = {name for name, _ in network.named_parameters()}
    for name, value in before.items():
        assert torch.equal(value, after[name]) != (name in trained), name
    fresh = Residual()
    fresh.load_state_dict(after)
    torch.testing.assert_close(fresh.eval()(x), tuned(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "passes", ["canonicalize,fold-affine,restore,bake", "canonicalize,fold-near-affine"]
)
def test_other_passes_are_refused(passes: str) -> None:
    with pytest.raises(UsageError, match="leave nothing to train as it was"):
        normfold.tune(Residual(), (torch.randn(2, 4, 12, 12),), passes=passes)


def test_example_inputs_in_other_forms() -> None:
    network, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval(), torch.randn(4, 6)
    forms: list[Any] = [x, [x], (x,)]
    for given in forms:
        torch.testing.assert_close(normfold.tune(network, given)(x), network(x))
    wrong: Any = "network"
    with pytest.raises(UsageError, match="only a module"):
        normfold.capture(wrong, (x,))
