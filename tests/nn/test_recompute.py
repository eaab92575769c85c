"""Activation checkpointing against the plain run: gradients and buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normfold.errors import UsageError
from normfold.nn import OfflineNorm, valid_tokens
from tests.nn.norms import STATISTICAL, assert_same, norm_of, state, tokens, weighted_sum

Wrap = Callable[[nn.Module, Tensor], Tensor]
MODES = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "not reentrant": functools.partial(checkpoint, use_reentrant=False),
}


def plain(block: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = block(x)
    return result


class Block(nn.Module):
    """The norm shared with all blocks comes twice, around the block's own."""

    def __init__(self, kind: str, shared: OfflineNorm) -> None:
        super().__init__()
        self.shared, self.own = shared, norm_of(kind)
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear(self.own(self.shared(x).tanh()))
        result: Tensor = x + self.shared(inner)
        return result


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared = norm_of(kind)
        self.blocks = nn.ModuleList(Block(kind, shared) for _ in range(3))

    def forward(self, x: Tensor, wrap: Wrap) -> Tensor:
        for block in self.blocks:
            x = wrap(block, x)
        return x


def train(kind: str, wrap: Wrap, masked: bool) -> dict[str, Tensor]:
    """Three steps of two forwards each, with a forward that nothing comes back to; then one backward."""
    net = Net(kind)
    for step in range(3):
        losses = []
        for part in (0, 1):
            x = tokens(3, 5, 4, seed=2 * step + part).requires_grad_()
            mask = torch.ones(3, 5, dtype=torch.bool)
            mask[part, 3:] = not masked
            with valid_tokens(net, mask):
                losses.append(weighted_sum(net(x, wrap)))
        with torch.no_grad():
            net(tokens(3, 5, 4, seed=90 + step), plain)
        (losses[0] if step == 1 else losses[0] + losses[1]).backward()
    return state(net)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", STATISTICAL)
def test_recomputation_changes_nothing(kind: str, mode: str, masked: bool) -> None:
    assert_same(train(kind, MODES[mode], masked), train(kind, plain, masked), 1e-10)


def test_half_of_the_batches_may_have_no_mask() -> None:
    """A forward without a mask is not taken for one of the same shape that had one."""

    def run(wrap: Wrap) -> dict[str, Tensor]:
        net = Net("bn")
        losses = []
        for step in range(4):
            x = tokens(3, 5, 4, seed=step).requires_grad_()
            mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(step)) > 0.3
            if step % 2:
                losses.append(weighted_sum(net(x, wrap)))
            else:
                with valid_tokens(net, mask):
                    losses.append(weighted_sum(net(x, wrap)))
        torch.stack(losses).sum().backward()
        return state(net)

    assert_same(run(MODES["not reentrant"]), run(plain), 1e-10)


def test_a_recomputation_of_something_unseen_is_refused() -> None:
    norm = norm_of("un")
    x = tokens(3, 5, 4).requires_grad_()
    norm.training = False
    y = checkpoint(norm, x, use_reentrant=True)
    norm.training = True
    with pytest.raises(UsageError, match="did not see this input"):
        y.sum().backward()
